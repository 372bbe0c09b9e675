"""The warm-up: nothing evaluated gets in, a stop loses nothing; that peft agrees: test_lora.py."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from adapter_runs import stopped
from conftest import REPOSITORY, edited, put
from hypothesis import given
from hypothesis import strategies as st
from stage_runs import MODEL, refused, run, stop_after, tree
from transformers import AutoModelForCausalLM, AutoTokenizer

import get_warmup_data
import warmup_lora
from utils import generation, warmup
from utils.files import write_json
from utils.journal import remove_journal
from utils.lora import objectives
from utils.lora.examples import Steps
from utils.metrics import normalize
from utils.prompting import PromptEncoder, load_prompts
from utils.questions import DATASETS, load_questions, take_sample

DATA = Path(__file__).parent / "data" / "warmup"
DEMO = str(REPOSITORY / "data/demo/questions.json")
MAKE = ["--data_path", str(DATA), "--model_name", MODEL]
MAKE += "--sample 1 --skip 2 --cot_records 2 --direct_records 4 --batch_size 1".split()
DEV = ["--data_type", "dev", "--sample", "60"]
WARM = "offline/demo-model/rank=2_alpha=32/warmup_direct"


@pytest.mark.parametrize(("dataset", "past", "chosen"), [
    # the first bridge_comparison is record 5; 8 and 9 repeat its question, spelt otherwise
    ("2wikimultihopqa", 6, {10, 13, 14}),
    ("hotpotqa", 4, {7, 8, 9}),
    ("popqa", 1, {2, 3, 4, 6, 7, 8}),
    ("complexwebquestions", 1, {2, 3, 4, 5, 7, 8}),
])  # fmt: skip
def test_what_is_chosen_from_the_raw_formats(dataset, past, chosen):
    """Also: no record whose support is missing, or whose answer scoring would cut."""
    source = warmup.open_source(dataset, DATA / dataset, None, 1)
    found = warmup.collect([source], source.kinds[0], 2, 0)[dataset]
    assert (source.past, {one["index"] for one in found}) == (past, chosen)
    one, raw = found[0], load_questions(dataset, DATA / dataset)["total"][found[0]["index"]]
    assert one["question"] == raw["question"] and one["answer"] in (raw["answer"], raw["answer"][0])


def test_of_all_published_data_sets_the_papers_are_taken(tmp_path):
    for name in ("popqa", "musique"):
        shutil.copytree(DATA.with_name(name), tmp_path / name)
    flags = ["--data_path", str(tmp_path), "--sample", "1"]
    sources = get_warmup_data.open_sources(get_warmup_data.parse_arguments(flags))
    assert [source.dataset for source in sources] == ["popqa"]
    flags = ["--data_path", str(tmp_path / "musique"), "--sample", "1", "--dataset", "musique"]
    [source] = get_warmup_data.open_sources(get_warmup_data.parse_arguments(flags))
    assert (source.dataset, source.past, source.kinds) == ("musique", 3, (warmup.COT,))
    assert all(one["evidence"] for one in source.records)


words = st.sampled_from(["Who is Orr?", "who is orr", "Where is the Orr?", "Where is Hale", "How?"])
types = st.sampled_from([*DATASETS["hotpotqa"].types, "odd"])


@given(st.lists(st.tuples(words, types), min_size=5), st.integers(1, 4), st.integers(0, 2))
def test_no_evaluated_question_is_chosen_in_any_order(tmp_path_factory, drawn, sample, skip):
    folder = tmp_path_factory.mktemp("drawn")
    support = {"answer": "A", "context": [["T", ["S."]]], "supporting_facts": [["T", 0]]}
    raw = [{"question": q, "type": t, "_id": i, **support} for i, (q, t) in enumerate(drawn)]
    write_json(folder / "hotpot_dev_distractor_v1.json", raw)
    source = warmup.open_source("hotpotqa", folder, None, sample)
    found = warmup.collect([source], warmup.COT, skip, 0)
    sampled = take_sample(load_questions("hotpotqa", folder), sample).values()
    evaluated = {record["qid"]: record["question"] for chosen in sampled for record in chosen}
    last, asked = max(evaluated), set(map(normalize, evaluated.values()))
    free = [i for i, (q, _) in enumerate(drawn) if normalize(q) not in asked and i > last + skip]
    assert sorted(one["index"] for one in found.get("hotpotqa", [])) == free


def test_a_question_that_another_data_set_or_type_evaluates_is_dropped():
    asked, other, why = ({"question": q, "answer": "Orr"} for q in ("Who made it?", "Who?", "Why?"))
    one = warmup.Source("one", [other, other, asked], 1, {warmup.question_key("Who?")})
    keys = {warmup.question_key("who made it")}
    sources = [one, warmup.Source("two", [asked, other, asked, why], 1, keys)]
    [(name, [found])] = warmup.collect(sources, warmup.DIRECT, 1, 0).items()
    assert (name, found["question"]) == ("two", "Why?")
    source, loaded = warmup.open_source("demo", Path(DEMO), "dev", 60), load_questions("demo", DEMO)
    held = [*loaded["test"], *loaded["dev"][:60]]
    assert source.evaluated == {warmup.question_key(record["question"]) for record in held}
    assert source.past == 60 and len(warmup.collect([source], warmup.DIRECT, 0, 0)["demo"]) == 84


def test_a_reasoning_is_usable_only_with_the_answer_that_scoring_reads():
    texts = ["A made it.\nSo the answer is Orr.\n\nMore", " A b. So the answer is the orr, I say"]
    texts += ["Ann made it. So the answer is not Orr.", "Orr", "So the answer is Orr."]
    texts += ["<think>Or so?", "B. So the answer is Orr.</think> So the answer is Orr."]
    records = warmup.usable_records([{"answer": "Orr", "evidence": ["A."]}] * 7, texts)
    usable = ["A made it. So the answer is Orr", "A b. So the answer is the orr"]
    assert records == [{"answer": "Orr", "full_answer": text} for text in usable]


def reason(model, tokenizer, prompts, *more) -> list[str]:
    """A model's texts: right, but every third question's answer is wrong."""
    texts = []
    for shown in map(tokenizer.decode, prompts):
        answer = shown.split("Right answer: ")[1].split("\n")[0]
        question = shown.split("\nQuestion: ")[-1].split("?")[0]
        answer = answer if sum(question.encode()) % 3 else "nobody"
        texts.append(f" Look at {question}. So the answer is {answer}.\n")
    return texts


def test_both_kinds_of_data_are_made_and_a_stopped_run_ends_with_the_same_bytes(root, monkeypatch):
    monkeypatch.setattr(generation, "generate", reason)
    run(get_warmup_data, *MAKE)
    direct = json.loads((root / "data_aug/warmup/direct.json").read_text())
    datasets = [record["dataset"] for record in direct]
    assert sorted(datasets) == ["complexwebquestions"] * 4 + ["popqa"] * 4 != datasets
    cot = json.loads((root / "data_aug/warmup/demo-model/cot.json").read_text())
    assert all(set(r) == {*direct[0], "full_answer"} for r in cot) and len(cot) == 4
    assert all(r["full_answer"].endswith(f"So the answer is {r['answer']}") for r in cot)
    whole = tree(root)
    run(get_warmup_data, *MAKE)
    assert tree(root) == whole and not [name for name in whole if "journal" in name]
    refused("was made with records =", run, get_warmup_data, *MAKE, "--direct_records", "3")
    shutil.rmtree(root / "data_aug")
    stopped(generation, "generate", 3, get_warmup_data, *MAKE)
    other = (*MAKE, "--max_new_tokens", "90")
    refused(r"unfinished work .* max_new_tokens = 128, but .* = 90", run, get_warmup_data, *other)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "generate", stop_after(4, reason))  # 3 of 5 batches are left
        run(get_warmup_data, *MAKE)
    for stop in (1, 3):
        assert tree(root) == whole
        stopped(generation, "generate", stop, get_warmup_data, *MAKE, "--overwrite")
        remove_journal(root / "data_aug/warmup/demo-model/.cot.journal") if stop == 1 else None
    run(get_warmup_data, *MAKE)  # goes on without the flag
    assert tree(root) == whole
    run(warmup_lora, "--model_name", MODEL, "--with_cot")
    training = json.loads((root / WARM.replace("direct", "cot/training_config.json")).read_text())
    assert training["with_cot"] and training["datasets"] == ["2wikimultihopqa", "hotpotqa"]


def test_what_cannot_give_a_reasoning_is_refused_and_leaves_nothing(root, monkeypatch):
    shown = []
    monkeypatch.setattr(
        generation, "generate", lambda m, t, prompts, *a: shown.extend(prompts) or [""]
    )
    sentences = {  # flags by what is said
        "few-shot examples for 'demo'": ["--dataset", "demo", "--data_path", DEMO, *DEV],
        "wrote no reasoning that can be used": ["--max_candidates", "2", "--direct_records", "0"],
        r"demo has no text 'cot\.reasoning_request'": ["--prompts", "demo"],
    }
    for sentence, flags in sentences.items():
        refused(sentence, run, get_warmup_data, *MAKE, *flags)
    assert tree(root) == {} and len(shown) == 4  # two of each data set


def test_every_epoch_takes_each_record_once_in_its_own_order():
    steps = Steps(range(7), 3, 3, seed=0)
    assert list(steps)[:3] == [[0, 5, 4], [3, 1, 6], [2]]  # as ever, so that a training can go on
    assert len(Steps(range(7), 3, 10**9, seed=0)) == 3 * 10**9  # without a list of that length
    assert [len(step) for step in steps] == [3, 3, 1] * 3
    epochs = {tuple(sum(list(steps)[i : i + 3], [])) for i in (0, 3, 6)}
    assert len(epochs) == 3 and all(sorted(order) == list(range(7)) for order in epochs)


def test_a_prompt_is_question_answer_full_stop_and_end_of_text():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    record = {"dataset": "hotpotqa", "question": "Who ", "answer": "Orr", "full_answer": "A b."}
    for with_cot, ending in ((False, "The answer is Orr."), (True, "Answer: A b.")):
        prompts = load_prompts("demo", "hotpotqa", with_cot)
        encoder = PromptEncoder(tokenizer, prompts, with_cot, 3000)
        encoders = dict.fromkeys(("", "hotpotqa"), encoder)
        [example] = warmup.encode_records([record], encoders, with_cot, 3000)
        text = tokenizer.decode(example.ids)
        assert text.endswith(f"Question: Who?<|eot|><|assistant|>{ending}<|eot|>")


def training(root: Path) -> list[str]:
    """The flags of a training on records of the demo in `data.json`."""
    data = root / "data.json"
    if not data.exists():
        write_json(data, json.loads(Path(DEMO).read_text())["dev"][-14:])
    flags = ["--model_name", MODEL, "--prompts", "demo", "--data", str(data), "--save_steps", "5"]
    return [*flags, "--learning_rate", "2e-3"]


def train(root: Path, *more: str) -> Path:
    run(warmup_lora, *training(root), *more)
    return root / WARM


def test_the_adapter_is_a_peft_folder_and_other_settings_are_refused(root):
    folder = train(root)
    model, ids = AutoModelForCausalLM.from_pretrained(MODEL), torch.arange(20, 30)[None]
    plain = model(ids).logits
    wrapped = peft.PeftModel.from_pretrained(model, folder)
    assert (wrapped(ids).logits - plain).abs().max() > 1e-2
    losses = json.loads((folder / "loss.json").read_text())
    assert len(losses["loss"]) == 14 and losses["smoothed"] == warmup.smoothed(losses["loss"])
    assert (folder / "loss.png").stat().st_size > 1000
    asked = json.loads((root / "data.json").read_text())[3]["question"]
    warmup.refuse_trained_questions(folder, ["Why?"])
    whole = tree(root)
    words = r"questions.json does not say which .* --overwrite"
    for content in ("[]", "{}", None):
        put(folder / "questions.json", content)
        refused(words, warmup.refuse_trained_questions, folder, ["Why?"])
    put(folder / "questions.json", whole[f"{WARM}/questions.json"].decode())
    again = ["Why?", asked.lower().replace(" ", "  ")]
    refused("trained on 1 of the questions", warmup.refuse_trained_questions, folder, again)
    with edited(folder / "training_config.json") as training:
        del training["num_train_epochs"]  # a setting that is absent has its default
    whole = tree(root)
    train(root)
    assert tree(root) == whole
    (root / "data.json").write_text((root / "data.json").read_text().replace("Who", "What"))
    refused("was made with data_file =", train, root)


def test_an_unfinished_training_is_refused_if_it_cannot_go_on(root):
    stopped(objectives, "lm", 13, warmup_lora, *training(root))
    assert not (root / WARM).exists()
    refused(r"unfinished training .* learning_rate = 0.002", train, root, "--learning_rate", "1")
    (root / WARM).with_name(".warmup_direct.checkpoint.safetensors").write_bytes(b"cut off")
    refused(r"unfinished training .* cannot be read", train, root)
    refused(r"the loss of step .* is nan", train, root, "--learning_rate", "1e30", "--overwrite")
    train(root, "--overwrite")
    whole = tree(root)
    for stop, kept in ((5, True), (13, False)):  # a checkpoint takes the old one's place
        stopped(objectives, "lm", stop, warmup_lora, *training(root), "--overwrite")
        assert (tree(root) == whole) == kept
    train(root)
    assert tree(root) == whole
