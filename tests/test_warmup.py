"""The warm-up: nothing evaluated gets in, a stop loses nothing, peft agrees."""

import json
import os
import shutil
import signal
import sys
import traceback
from argparse import Namespace
from pathlib import Path

import peft
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_lora import model_in, random_prompts, train_with_peft
from transformers import AutoModelForCausalLM, AutoTokenizer

import get_warmup_data
import warmup_lora
from utils.files import write_json
from utils.journal import Journal
from utils.lora.bank import LoraBank
from utils.metrics import normalize
from utils.prompting import load_prompts
from utils.provenance import PROVENANCE
from utils.questions import TYPES, load_questions, take_sample
from utils.running import InputError
from utils.store.folders import open_base_adapter
from utils.warmup import (
    ReasoningRequest,
    Source,
    encode_records,
    open_source,
    question_key,
    refuse_trained_questions,
    smoothed,
    steps_of,
    usable_reasoning,
    warmup_candidates,
)

DATA = Path(__file__).parent / "data" / "warmup"
DEMO = str(REPOSITORY / "data/demo/questions.json")
MODEL = str(REPOSITORY / "data/demo/demo-model")
PAPER_DATA = ["--data_path", str(DATA), "--sample", "1", "--skip", "2", "--batch_size", "1"]
WARM = "offline/demo-model/rank=2_alpha=32/warmup_direct"


def run(stage, *arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


def tree(root: Path) -> dict[str, bytes]:
    """Every file's bytes; of a training record without its date and the like."""
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    for name in files:
        if name.endswith("training_config.json"):
            settings = json.loads(files[name])
            assert settings.pop(PROVENANCE)
            files[name] = json.dumps(settings).encode()
    return files


def killed_at(calls: int, module, name: str, stage, *arguments: str) -> None:
    """Run a stage in a forked process that gets SIGKILL at call number `calls` of a function."""
    if (child := os.fork()) == 0:
        try:
            function, count = getattr(module, name), [0]
            # torch cannot begin threads in the child of a process that has used its own
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"

            def wrapper(*some, **keywords):
                count[0] += 1
                if count[0] == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*some, **keywords)

            setattr(module, name, wrapper)
            sys.argv = [stage.__name__, *arguments]
            stage.main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------
# Which records


@pytest.mark.parametrize(
    ("dataset", "with_cot", "past", "chosen", "duplicates"),
    [
        # the first bridge_comparison is record 5; 8 and 9 repeat its question, spelt otherwise
        ("2wikimultihopqa", True, 6, {10, 13, 14}, 2),
        ("hotpotqa", True, 4, {7, 8, 9}, 1),
        ("popqa", False, 1, {2, 3, 4, 6, 7, 8}, 1),
        ("complexwebquestions", False, 1, {2, 3, 4, 5, 7, 8}, 1),
    ],
)
def test_what_is_chosen_from_the_raw_formats(dataset, with_cot, past, chosen, duplicates):
    """Also: no record whose support is missing, or whose answer scoring would cut."""
    source = open_source(dataset, DATA / dataset, None, 1)
    candidates, dropped = warmup_candidates(source, 2, source.evaluated, with_cot, 0)
    assert (source.past, dropped) == (past, duplicates)
    assert {candidate["index"] for candidate in candidates} == chosen
    total = load_questions(dataset, DATA / dataset)["total"]
    for candidate in candidates:
        assert candidate["question"] == total[candidate["index"]]["question"]
        answers = total[candidate["index"]]["answer"]
        assert candidate["answer"] == (answers if isinstance(answers, str) else answers[0])


@pytest.mark.parametrize("dataset", TYPES)
@pytest.mark.parametrize("sample", [1, 2, 3])
@pytest.mark.parametrize("skip", [0, 1, 3])
@pytest.mark.parametrize("with_cot", [False, True])
def test_no_question_that_any_stage_evaluates_is_chosen(dataset, sample, skip, with_cot):
    source = open_source(dataset, DATA / dataset, None, sample)
    records = [{**r, "evidence": ["E."]} for r in source.records]  # none is left out for that
    source = Source(source.dataset, records, source.past, source.evaluated)
    candidates, _ = warmup_candidates(source, skip, source.evaluated, with_cot, 0)
    loaded = load_questions(dataset, DATA / dataset)
    places = {record["qid"]: place for place, record in enumerate(loaded["total"])}
    evaluated = [r for chosen in take_sample(loaded, sample).values() for r in chosen]
    last = max(places[record["qid"]] for record in evaluated)
    asked = {normalize(record["question"]) for record in evaluated}
    for candidate in candidates:
        assert candidate["index"] > last
        assert candidate["index"] >= (last + 1 + skip if with_cot else skip)
        assert normalize(candidate["question"]) not in asked


words = st.sampled_from(["Who is Orr?", "who is orr", "Where is the Orr?", "Where is Hale", "How?"])
typed = st.lists(st.tuples(words, st.sampled_from([*TYPES["hotpotqa"], "odd"])), min_size=2)


@given(typed, st.integers(1, 4), st.integers(0, 2))
def test_duplicates_never_leak_from_any_order_of_types(tmp_path_factory, drawn, sample, skip):
    folder = tmp_path_factory.mktemp("drawn")
    raw = [
        {"question": q, "answer": "A", "type": t, "_id": str(i)} for i, (q, t) in enumerate(drawn)
    ]
    raw = [{**r, "context": [["T", ["S."]]], "supporting_facts": [["T", 0]]} for r in raw]
    write_json(folder / "hotpot_dev_distractor_v1.json", raw)
    if sample >= len(raw):
        with pytest.raises(InputError, match="none is left for the warm-up"):
            open_source("hotpotqa", folder, None, sample)
        return
    source = open_source("hotpotqa", folder, None, sample)
    candidates, dropped = warmup_candidates(source, skip, source.evaluated, True, 0)
    sampled = take_sample(load_questions("hotpotqa", folder), sample).values()
    evaluated = {question_key(r["question"]) for chosen in sampled for r in chosen}
    assert not evaluated & {question_key(c["question"]) for c in candidates}
    assert len(candidates) + dropped == max(0, len(raw) - source.past - skip)


def test_a_question_that_another_data_set_evaluates_is_dropped(capsys):
    asked = {"question": "Who made it?", "answer": "Orr"}
    other = {"question": "Who else?", "answer": "Hale"}
    sources = [
        Source("popqa", [other, other, asked], 1, {question_key("Who else?")}),
        Source("complexwebquestions", [asked, other, asked, {**asked, "question": "Why?"}], 1,
               {question_key("who made it")}),
    ]  # fmt: skip
    options = Namespace(skip=1, seed=0)
    collected = get_warmup_data.collect(sources, False, options)
    assert [[c["question"] for c in own] for own in collected] == [["Why?"]]
    assert "popqa: 0 of 3 records can be used; 2 more dropped" in capsys.readouterr().out


def test_ones_own_file_gives_records_of_one_type_and_all_of_the_others_count_as_evaluated():
    source = open_source("demo", Path(DEMO), "dev", 60)
    questions = load_questions("demo", DEMO)
    assert source.past == 60 and len(source.records) == 144
    held = [*questions["test"], *questions["dev"][:60]]
    assert source.evaluated == {question_key(record["question"]) for record in held}
    assert len(warmup_candidates(source, 0, source.evaluated, False, 0)[0]) == 84
    assert open_source("demo", Path(DEMO), "dev", 0).past == 0
    for data_type, sample, problem in [
        (None, 60, "--data_type None: .* has dev, test"),
        ("train", 60, "--data_type train: .* has dev, test"),
        ("dev", 144, "all 144 questions of demo are evaluated"),
        ("dev", -1, "none is left"),
    ]:
        with pytest.raises(InputError, match=problem):
            open_source("demo", Path(DEMO), data_type, sample)


# ------------------------------------------------------------------------------------------------
# get_warmup_data.py


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A made it.\nSo the answer is Orr.\n\nQuestion: more", "A made it. So the answer is Orr"),
        (" A b. So the answer is the orr, I think", "A b. So the answer is the orr"),
        ("Ann made it. So the answer is Hale.", "with another answer"),
        ("Ann made it. So the answer is not Orr.", "with another answer"),
        ("Orr", 'without "the answer is"'),
        ("So the answer is Orr.", "without a reasoning"),
        ("The cat. the answer is", "with another answer"),
    ],
)  # fmt: skip
def test_a_reasoning_is_usable_only_with_the_answer_that_scoring_reads(text, wanted):
    reasoning, problem = usable_reasoning(text, "Orr")
    assert (problem if reasoning is None else reasoning) == wanted


def test_the_request_holds_facts_answer_and_examples_and_braces_are_literal():
    prompts = load_prompts("default", "hotpotqa", with_cot=True)
    odd = "{question} {answer}"
    message = ReasoningRequest(prompts, odd).user_message("Why ", ["T: one.", odd], True)
    assert f"Passage 1: T: one.\nPassage 2: {odd}\n" in message
    assert f"Right answer: {odd}\nQuestion: Why?" in message
    assert prompts.examples[0]["answer"] in message
    demo = load_prompts("demo", "hotpotqa", with_cot=True)
    with pytest.raises(InputError, match=r"demo has no text 'cot\.reasoning_request'"):
        ReasoningRequest(demo, "x")


def reason(model, tokenizer, prompts, *more) -> list[str]:
    """A model's texts: right, but every third question's answer is wrong."""
    texts = []
    for prompt in prompts:
        shown = tokenizer.decode(prompt)
        answer = shown.split("Right answer: ")[1].split("\n")[0]
        question = shown.split("\nQuestion: ")[-1].split("?")[0]
        wrong = sum(question.encode()) % 3 == 0
        texts.append(f" Look at {question}. So the answer is {'nobody' if wrong else answer}.\n")
    return texts


@pytest.fixture
def fake_model(monkeypatch):
    monkeypatch.setattr(get_warmup_data, "generate", reason)


COT = [*PAPER_DATA, "--model_name", MODEL, "--cot_records", "2", "--direct_records", "4"]


def test_both_kinds_of_data_are_made_from_the_papers_data_sets(
    root, monkeypatch, fake_model, capsys
):
    run(get_warmup_data, *COT, monkeypatch=monkeypatch)
    direct = json.loads((root / "data_aug/warmup/direct.json").read_text())
    assert sorted(r["dataset"] for r in direct) == ["complexwebquestions"] * 4 + ["popqa"] * 4
    assert [r["dataset"] for r in direct] != sorted(r["dataset"] for r in direct)
    cot = json.loads((root / "data_aug/warmup/demo-model/cot.json").read_text())
    assert all(set(r) == {*direct[0], "full_answer"} for r in cot) and len(cot) > 2
    for record in cot:
        assert record["full_answer"].endswith(f"So the answer is {record['answer']}")
        question = load_questions(record["dataset"], DATA / record["dataset"])["total"]
        assert question[record["index"]]["question"] == record["question"]
    said = capsys.readouterr().out
    assert "2wikimultihopqa: 3 of 17 records can be used; 2 more dropped" in said
    rejected = said.count("with another answer")
    assert rejected and "candidates tried" in said
    before = tree(root)
    run(get_warmup_data, *COT, monkeypatch=monkeypatch)
    assert tree(root) == before
    assert not [name for name in before if "journal" in name]


def test_killed_while_a_model_reasons_it_ends_with_the_same_bytes(root, monkeypatch):
    calls = []
    monkeypatch.setattr(get_warmup_data, "generate", lambda *a: (calls.append(1), reason(*a))[1])
    run(get_warmup_data, *COT, monkeypatch=monkeypatch)
    whole, batches = tree(root), len(calls)
    assert batches > 4
    for number in (1, 2, 4):
        shutil.rmtree(root / "data_aug")
        killed_at(number, get_warmup_data, "generate", get_warmup_data, *COT)
        assert not (root / "data_aug/warmup/demo-model/cot.json").exists()
        calls.clear()
        run(get_warmup_data, *COT, monkeypatch=monkeypatch)
        assert tree(root) == whole
        assert len(calls) == batches - (number - 1)  # what was finished is not made again
    journal = root / "data_aug/warmup/demo-model/.cot.journal"
    shutil.rmtree(root / "data_aug")
    killed_at(3, get_warmup_data, "generate", get_warmup_data, *COT)
    lines = journal.with_name(".cot.journal.0").read_bytes().splitlines()
    assert len(lines) == 3  # settings and two batches
    assert len(Journal(journal, json.loads(lines[0])).items) == 2
    with pytest.raises(InputError, match=r"unfinished work .* max_new_tokens = 128, but .* = 90"):
        run(get_warmup_data, *COT, "--max_new_tokens", "90", monkeypatch=monkeypatch)


def test_candidates_are_bounded_and_what_is_lacking_is_said(root, monkeypatch, capsys):
    monkeypatch.setattr(
        get_warmup_data, "generate", lambda m, t, prompts, *a: ["no"] * len(prompts)
    )
    flags = [*COT, "--max_candidates", "2"]
    with pytest.raises(InputError, match="wrote no reasoning that can be used"):
        run(get_warmup_data, *flags, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert 'hotpotqa: 2 candidates tried, 0 usable, 2 rejected (2 without "the answer is")' in said
    assert "hotpotqa: 2 fewer than --cot_records" in said
    assert not list((root / "data_aug/warmup").rglob("*cot*"))


def test_without_a_model_the_direct_data_alone_are_made(root, monkeypatch, capsys):
    folder = root / "raw"
    for dataset in ("popqa", "hotpotqa"):
        shutil.copytree(DATA / dataset, folder / dataset)
    flags = ["--data_path", str(folder), "--sample", "1", "--skip", "2"]
    run(get_warmup_data, *flags, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "CoT data need a model" in said and "complexwebquestions: there is no folder" in said
    assert [p.name for p in sorted((root / "data_aug/warmup").iterdir())] == [
        ".direct.settings", "direct.json",
    ]  # fmt: skip
    for more, name in ((["--seed", "1"], "seed"), (["--direct_records", "3"], "records")):
        with pytest.raises(InputError, match=f"was made with {name} ="):
            run(get_warmup_data, *flags, *more, monkeypatch=monkeypatch)
    run(get_warmup_data, *flags, "--direct_records", "3", "--overwrite", monkeypatch=monkeypatch)
    assert len(json.loads((root / "data_aug/warmup/direct.json").read_text())) == 3
    shutil.rmtree(folder / "popqa")
    with pytest.raises(InputError, match="no record can be used"):
        run(get_warmup_data, *flags, monkeypatch=monkeypatch)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="holds no folder named 2wikimultihopqa"):
        run(get_warmup_data, *flags, monkeypatch=monkeypatch)


def test_a_prompt_set_without_the_request_is_refused_before_anything_is_written(root, monkeypatch):
    with pytest.raises(InputError, match=r"cot\.reasoning_request"):
        run(get_warmup_data, *COT, "--prompts", "demo", monkeypatch=monkeypatch)
    own = ["--dataset", "demo", "--data_path", DEMO, "--data_type", "dev", "--sample", "60"]
    with pytest.raises(InputError, match=r"--model_name needs few-shot .* or drop --model_name"):
        run(get_warmup_data, *own, "--model_name", MODEL, monkeypatch=monkeypatch)
    assert tree(root) == {}


# ------------------------------------------------------------------------------------------------
# warmup_lora.py


@pytest.mark.parametrize(("architecture", "batch_size"), [("llama", 1), ("qwen2", 3)])
def test_training_equals_peft_in_float64(tmp_path, architecture, batch_size):
    torch.manual_seed(0)
    prompts = random_prompts([12])[0]
    steps = steps_of(12, 2, batch_size, seed=5)
    in_order = [prompts[index] for step in steps for index in step]
    bank = LoraBank(model_in(torch.float64, architecture, True), 2, 8)
    base = open_base_adapter(bank, tmp_path / "base", "tiny", seed=1)
    base = {name: (A.double(), B.double()) for name, (A, B) in base.items()}
    checkpoint = warmup_lora.Checkpoint(tmp_path / "checkpoint", {})
    mine, losses = warmup_lora.train(bank, base, prompts, steps, 3e-3, checkpoint, 100)
    oracle_model = model_in(torch.float64, architecture, True)
    oracle = train_with_peft(oracle_model, tmp_path / "base", in_order, 3e-3, 1, batch_size)
    assert len(oracle) == 2 * len(mine) and len(losses) == len(steps) == 24 // batch_size
    moved = 0.0
    for name, (A, B) in mine.items():
        for part, tensor in (("A", A), ("B", B)):
            expected = oracle[f"base_model.model.{name}.lora_{part}.weight"]
            assert (tensor - expected).abs().max() < 1e-7
            moved = max(moved, (tensor - base[name]["AB".index(part)]).abs().max().item())
    assert moved > 1e-3


def test_every_epoch_takes_each_record_once_in_its_own_order():
    steps = steps_of(7, 3, 3, seed=0)
    assert [len(step) for step in steps] == [3, 3, 1] * 3
    epochs = [sum(steps[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert steps_of(7, 3, 3, seed=0) == steps != steps_of(7, 3, 3, seed=1)


def test_a_prompt_is_question_answer_full_stop_and_end_of_text():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    record = {
        "dataset": "hotpotqa",
        "question": "Who is it ",
        "answer": "Orr",
        "full_answer": "A b.",
    }
    direct = encode_records([record], {"": load_prompts("demo", "", False)}, tokenizer, False, 90)
    text = tokenizer.decode(direct[0])
    assert text.endswith("Question: Who is it?<|eot|><|assistant|>The answer is Orr.<|eot|>")
    prompts = {"hotpotqa": load_prompts("demo", "hotpotqa", True)}
    ids = encode_records([record], prompts, tokenizer, True, 3000)[0]
    text = tokenizer.decode(ids)
    assert text.endswith("<|assistant|>Answer: A b.<|eot|>")
    assert prompts["hotpotqa"].examples[1]["question"] in text
    with pytest.raises(InputError, match=r"record 0 makes .* more than --block_size 50;"):
        encode_records([record], prompts, tokenizer, True, 50)


def test_the_loss_is_smoothed_over_the_last_steps():
    losses = [float(i) for i in range(60)]
    assert smoothed(losses)[:3] == [0.0, 0.5, 1.0]
    assert smoothed(losses)[-1] == sum(range(10, 60)) / 50


@pytest.fixture(scope="module")
def direct_data(tmp_path_factory):
    questions = json.loads(Path(DEMO).read_text())["dev"][-14:]
    path = tmp_path_factory.mktemp("data") / "direct.json"
    write_json(path, [{key: r[key] for key in ("question", "answer")} for r in questions])
    return path


def flags_for(data: Path, *more: str) -> list[str]:
    flags = ["--model_name", MODEL, "--prompts", "demo", "--data", str(data)]
    return [*flags, "--learning_rate", "2e-3", "--save_steps", "5", *more]


def test_the_adapter_is_a_peft_folder_that_changes_the_logits(root, monkeypatch, direct_data):
    run(warmup_lora, *flags_for(direct_data), monkeypatch=monkeypatch)
    folder = root / WARM
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "training_config.json", "loss.json",
        "loss.png", "questions.json",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    ids = AutoTokenizer.from_pretrained(MODEL)("Who founded it?", return_tensors="pt").input_ids
    plain = model(ids).logits
    wrapped = peft.PeftModel.from_pretrained(model, folder)
    expected = set(peft.get_peft_model_state_dict(wrapped))
    assert set(load_file(folder / "adapter_model.safetensors")) == expected
    loaded = wrapped.load_adapter(folder, adapter_name="again")
    assert not loaded.unexpected_keys and not [k for k in loaded.missing_keys if "lora_" in k]
    assert (wrapped(ids).logits - plain).abs().max() > 1e-2
    losses = json.loads((folder / "loss.json").read_text())
    assert len(losses["loss"]) == 14 and losses["smoothed"] == smoothed(losses["loss"])
    training = json.loads((folder / "training_config.json").read_text())
    assert training["records"] == 14 and training["base"]
    questions = [record["question"] for record in json.loads(direct_data.read_text())]
    with pytest.raises(InputError, match="trained on 14 of the questions"):
        refuse_trained_questions(folder, questions)
    assert [p.name for p in folder.parent.iterdir()].count("base_weight") == 1
    assert not list(folder.parent.glob(".*"))
    before = tree(root)
    run(warmup_lora, *flags_for(direct_data), monkeypatch=monkeypatch)
    assert tree(root) == before


def test_a_question_that_the_adapter_was_trained_on_is_not_answered_with_it(tmp_path):
    """The stages take any --sample: a larger one than get_warmup_data.py was given would leak."""
    refuse_trained_questions(tmp_path, ["Who made it?"])  # an adapter that is no warm-up
    write_json(tmp_path / "questions.json", [question_key("Who made it?")])
    refuse_trained_questions(tmp_path, ["Who made that?"])
    with pytest.raises(InputError, match=r"trained on 1 of the questions .* 'who made  it'"):
        refuse_trained_questions(tmp_path, ["Why?", "who made  it"])


def test_killed_while_training_it_goes_on_and_ends_with_the_same_bytes(
    root, monkeypatch, direct_data
):
    flags = flags_for(direct_data, "--num_train_epochs", "2")
    run(warmup_lora, *flags, monkeypatch=monkeypatch)
    whole = tree(root)
    taken = []
    original = warmup_lora.mean_loss
    for call, left in ((4, 28), (13, 18), (28, 3)):
        shutil.rmtree(root / "offline")
        killed_at(call, warmup_lora, "mean_loss", warmup_lora, *flags)
        assert not (root / WARM).exists()
        if call == 13:
            with pytest.raises(InputError, match=r"unfinished training .* learning_rate = 0.002"):
                run(warmup_lora, *flags, "--learning_rate", "1", monkeypatch=monkeypatch)
        taken.clear()
        with monkeypatch.context() as patch:
            patch.setattr(warmup_lora, "mean_loss", lambda *a: (taken.append(1), original(*a))[1])
            run(warmup_lora, *flags, monkeypatch=patch)
        assert len(taken) == left  # from the last of the checkpoints after 5, 10, 15, 20, 25 steps
        assert tree(root) == whole
    shutil.rmtree(root / WARM)
    killed_at(1, warmup_lora, "plot", warmup_lora, *flags)
    assert not (root / WARM).exists()
    run(warmup_lora, *flags, monkeypatch=monkeypatch)
    assert (root / WARM / "loss.png").exists()
    killed_at(13, warmup_lora, "mean_loss", warmup_lora, *flags, "--overwrite")
    run(warmup_lora, *flags, monkeypatch=monkeypatch)  # without --overwrite
    assert tree(root) == whole


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--num_train_epochs", "2"], "num_train_epochs"),
        (["--seed", "1"], "seed"),
        (["--block_size", "200"], "block_size"),
        (["--prompts", "default"], "prompts"),
    ],
)
def test_an_adapter_made_with_other_settings_is_refused(root, monkeypatch, direct_data, more, name):
    folder = root / WARM
    folder.mkdir(parents=True)
    caught = []

    def catch(what, made_with, asked, remedy):
        caught.append(asked)
        raise InputError("stop")

    (folder / "adapter_model.safetensors").touch()
    write_json(folder / "training_config.json", {})
    with monkeypatch.context() as patch, pytest.raises(InputError):
        patch.setattr(warmup_lora, "refuse_difference", catch)
        run(warmup_lora, *flags_for(direct_data), monkeypatch=patch)
    write_json(folder / "training_config.json", {**caught[0], "base": "b", PROVENANCE: {}})
    run(warmup_lora, *flags_for(direct_data), monkeypatch=monkeypatch)  # stands already
    with pytest.raises(InputError, match=f"was made with {name} ="):
        run(warmup_lora, *flags_for(direct_data, *more), monkeypatch=monkeypatch)
    direct = json.loads(direct_data.read_text())
    direct[3]["answer"] = "Orr"
    write_json(root / "changed.json", direct)
    with pytest.raises(InputError, match="was made with data_file ="):
        run(warmup_lora, *flags_for(root / "changed.json"), monkeypatch=monkeypatch)


def test_a_damaged_checkpoint_and_a_diverged_loss_are_input_errors(root, monkeypatch, direct_data):
    checkpoint = (root / WARM).with_name(".warmup_direct.checkpoint.safetensors")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"checkpoint .* cannot be read"):
        run(warmup_lora, *flags_for(direct_data), monkeypatch=monkeypatch)
    flags = flags_for(direct_data, "--learning_rate", "1e30", "--overwrite")
    with pytest.raises(InputError, match=r"the loss of step .* is nan"):
        run(warmup_lora, *flags, monkeypatch=monkeypatch)
    assert not (root / WARM).exists()


def test_missing_data_and_broken_records_are_named(root, monkeypatch):
    flags = ["--model_name", MODEL, "--prompts", "demo"]
    with pytest.raises(InputError, match=r"direct\.json does not exist; run src/get_warmup_data"):
        run(warmup_lora, *flags, monkeypatch=monkeypatch)
    with pytest.raises(InputError, match=r"demo-model/cot\.json does not exist"):
        run(warmup_lora, *flags, "--with_cot", monkeypatch=monkeypatch)
    write_json(root / "mine.json", [{"question": "Who?", "answer": ["a", "list"]}])
    with pytest.raises(InputError, match="record 0 has no text 'answer'"):
        run(warmup_lora, *flags, "--data", str(root / "mine.json"), monkeypatch=monkeypatch)


def test_cot_data_train_a_folder_of_their_own(root, monkeypatch, fake_model):
    run(get_warmup_data, *COT, monkeypatch=monkeypatch)
    run(warmup_lora, "--model_name", MODEL, "--with_cot", monkeypatch=monkeypatch)
    training = json.loads(
        (root / WARM.replace("direct", "cot") / "training_config.json").read_text()
    )
    assert training["with_cot"] and training["datasets"] == ["2wikimultihopqa", "hotpotqa"]
