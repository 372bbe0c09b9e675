"""The real scripts on the bundled world: end to end, stopped, started again, refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from conftest import REPOSITORY, use_root
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import augment
import encode
import inference
import prep_elastic
from utils.lora import read_training
from utils.paths import InputError
from utils.retrieval import open_retriever

MODEL = str(REPOSITORY / "data/demo/demo-model")
COMMON = ["--model_name", MODEL, "--prompts", "demo"]
DEV = ["--dataset", "demo", "--data_type", "dev"]
AUGMENT = [
    *COMMON, *DEV, "--data_path", str(REPOSITORY / "data/demo/questions.json"),
    "--index_name", "demo", "--sample", "4", "--max_new_tokens", "160", "--batch_size", "4",
]  # fmt: skip
TRAIN = ["--learning_rate", "4e-3", "--num_train_epochs", "2"]
ADAPTERS = "offline/demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=2/aug_model=demo-model/dev"
RESULTS = "output/demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=2/aug_model=demo-model"


def run(stage, *arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [stage.__name__, *arguments])
    stage.main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A root with a finished index, augmentation, adapters and all four results; do not change."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_root(root, patch)
        corpus = str(REPOSITORY / "data/demo/corpus.tsv")
        index = ("--data_path", corpus, "--index_name", "demo")
        run(prep_elastic, *index, monkeypatch=patch)
        run(augment, *AUGMENT, monkeypatch=patch)
        run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=patch)
        for method in inference.METHODS:
            answer(method, monkeypatch=patch)
    return root


def answer(method: str, *more: str, monkeypatch) -> None:
    flags = (*COMMON, *DEV, *TRAIN, "--inference_method", method, "--max_new_tokens", "12", *more)
    run(inference, *flags, monkeypatch=monkeypatch)


@pytest.fixture
def copy(finished, root):
    """The finished root's content in this test's own root."""
    shutil.copytree(finished, root, dirs_exist_ok=True)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_stages_write_what_the_contract_says(finished):
    records = json.loads((finished / "data_aug/demo/dev.json").read_text())
    assert [record["test_id"] for record in records] == [0, 1, 2, 3]
    for record in records:
        assert len(record["passages"]) == 3
        for pid, entry in enumerate(record["augment"]):
            assert entry["pid"] == pid and entry["passage"] == record["passages"][pid]
            assert entry["demo-model_rewrite"] and len(entry["demo-model_qa"]) == 3
            assert all(
                set(p) == {"question", "answer", "full_answer"} for p in entry["demo-model_qa"]
            )
    folders = sorted(p.name for p in (finished / ADAPTERS).glob("data_*/passage_*"))
    assert folders == sorted(["passage_0", "passage_1", "passage_2"] * 4)
    for method in inference.METHODS:
        leaf = finished / RESULTS / method / "dev"
        assert {p.name for p in leaf.iterdir()} == {"config.json", "predict.json", "result.txt"}
        predictions = json.loads((leaf / "predict.json").read_text())
        assert [p["question"] for p in predictions] == [r["question"] for r in records]
        assert set(predictions[0]) == {
            "test_id", "question", "answer", "text", "eval_predict", "em", "f1", "prec", "recall",
        }  # fmt: skip
        head, _, settings = (leaf / "result.txt").read_text().partition("\n\n")
        assert [line.split("\t")[0] for line in head.split("\n")] == ["em", "f1", "prec", "recall"]
        mean = sum(p["f1"] for p in predictions) / 4
        assert f"f1\t{mean:.4f}" in head
        assert json.loads(settings)["max_new_tokens"] == 12
    leftovers = [p for p in finished.rglob("*") if p.suffix in (".tmp", ".journal")]
    assert leftovers == []


def test_every_saved_adapter_loads_in_peft_and_changes_the_logits(finished):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    ids = AutoTokenizer.from_pretrained(MODEL)("Who founded it?", return_tensors="pt").input_ids
    plain = model(ids).logits
    folders = sorted((finished / ADAPTERS).glob("data_*/passage_*"))
    wrapped = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="0")
    expected = set(peft.get_peft_model_state_dict(wrapped, adapter_name="0"))
    for number, folder in enumerate(folders):
        assert set(load_file(folder / "adapter_model.safetensors")) == expected
        if number:
            assert not wrapped.load_adapter(folder, adapter_name=str(number)).unexpected_keys
        wrapped.set_adapter(str(number))
        assert (wrapped(ids).logits - plain).abs().max() > 1e-3


def test_prag_answers_from_all_passages_of_every_question(finished):
    """peft, one question at a time, gives the answers that the batched bank gave."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    predictions = json.loads((finished / RESULTS / "prag/dev/predict.json").read_text())
    prompts = json.loads((REPOSITORY / "src/prompts/demo.json").read_text())
    for did, prediction in enumerate(predictions):
        model = AutoModelForCausalLM.from_pretrained(MODEL)
        folders = [finished / ADAPTERS / f"data_{did}/passage_{pid}" for pid in range(3)]
        model = peft.PeftModel.from_pretrained(model, folders[0], adapter_name="0")
        for pid in (1, 2):
            model.load_adapter(folders[pid], adapter_name=str(pid))
        model.add_weighted_adapter(["0", "1", "2"], [1.0] * 3, "all", combination_type="cat")
        model.set_adapter("all")
        user = prompts["direct"]["without_passages"].replace("{question}", prediction["question"])
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True
        )
        encoded = tokenizer(text + "The answer is", return_tensors="pt", add_special_tokens=False)
        output = model.generate(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask,
            max_new_tokens=12, do_sample=False,
        )  # fmt: skip
        generated = output[0, encoded.input_ids.shape[1] :]
        assert tokenizer.decode(generated, skip_special_tokens=True) == prediction["text"]


@pytest.mark.parametrize("method", ["icl", "combine"])
def test_batched_answers_equal_single_ones(finished, copy, monkeypatch, method):
    answer(method, "--batch_size", "1", "--overwrite", monkeypatch=monkeypatch)
    path = f"{RESULTS}/{method}/dev/predict.json"
    assert (copy / path).read_bytes() == (finished / path).read_bytes()


def test_a_second_run_changes_nothing(copy, monkeypatch):
    before = tree(copy)
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=monkeypatch)
    answer("prag", monkeypatch=monkeypatch)
    assert tree(copy) == before


def stop_after(calls: int, function):
    """`function`, but call number `calls` is a Ctrl-C."""
    count = 0

    def wrapper(*arguments, **keywords):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    return wrapper


def test_a_stopped_augmentation_goes_on_and_ends_with_the_same_bytes(finished, copy, monkeypatch):
    shutil.rmtree(copy / "data_aug")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "augment_block", stop_after(2, augment.augment_block))
        with pytest.raises(KeyboardInterrupt):
            run(augment, *AUGMENT, monkeypatch=patch)
    assert not (copy / "data_aug/demo/dev.json").exists()
    calls = []
    original = augment.augment_block
    monkeypatch.setattr(
        augment, "augment_block", lambda *a: (calls.append(len(a[0])), original(*a))[1]
    )
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    assert sum(calls) < 4  # the finished block was not made again
    assert tree(copy / "data_aug") == tree(finished / "data_aug")


def test_a_stopped_encoding_goes_on_and_ends_with_the_same_bytes(finished, copy, monkeypatch):
    flags = [*COMMON, *DEV, *TRAIN, "--adapters_per_batch", "3"]
    shutil.rmtree(copy / "offline")
    run(encode, *flags, monkeypatch=monkeypatch)
    whole = tree(copy / "offline")
    shutil.rmtree(copy / "offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "save_adapter", stop_after(5, encode.save_adapter))
        with pytest.raises(KeyboardInterrupt):
            run(encode, *flags, monkeypatch=patch)
    assert 0 < len(list((copy / ADAPTERS).glob("*/*"))) < 12
    run(encode, *flags, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole


def test_stopped_answering_goes_on_and_ends_with_the_same_bytes(copy, monkeypatch):
    flags = ("combine", "--batch_size", "1")
    answer(*flags, "--overwrite", monkeypatch=monkeypatch)
    whole = tree(copy / "output")
    shutil.rmtree(copy / "output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "generate", stop_after(3, inference.generate))
        with pytest.raises(KeyboardInterrupt):
            answer(*flags, monkeypatch=patch)
    left = RESULTS + "/combine/dev/.predict.journal"
    assert len((copy / left).read_bytes().splitlines()) == 3  # settings and two answers
    answer(*flags, monkeypatch=monkeypatch)
    combine = {name: data for name, data in whole.items() if "/combine/" in name}
    assert tree(copy / "output") == combine


def test_equal_training_data_is_trained_once(copy, monkeypatch, capsys):
    """Also under `total` and another question; the published software trained them again."""
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    (copy / "data_aug/demo/total.json").write_text(json.dumps(records[::-1]))
    shutil.rmtree(copy / "offline")
    trained = []
    original = encode.train_adapters

    def count(bank, base, prompts, *more):
        trained.append(len(prompts))
        return original(bank, base, prompts, *more)

    monkeypatch.setattr(encode, "train_adapters", count)
    run(encode, *COMMON, "--dataset", "demo", *TRAIN, monkeypatch=monkeypatch)
    distinct = {entry["passage"] for record in records for entry in record["augment"]}
    assert sum(trained) == len(distinct)
    assert f"24 passages, {len(distinct)} with different training data" in capsys.readouterr().out
    first = copy / ADAPTERS / "data_0/passage_1/adapter_model.safetensors"
    other = copy / ADAPTERS.replace("/dev", "/total") / "data_3/passage_1/adapter_model.safetensors"
    assert first.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--per_device_train_batch_size", "2"], "per_device_train_batch_size"),
        (["--seed", "1"], "seed"),
        (["--max_length", "90"], "max_length"),
        (["--prompts", "default"], "prompts"),
    ],
)
def test_adapters_made_with_other_settings_are_refused(copy, monkeypatch, more, name):
    for stage, method in ((encode, []), (inference, ["--inference_method", "prag"])):
        with pytest.raises(InputError, match=f"was made with {name} ="):
            run(stage, *COMMON, *DEV, *TRAIN, *method, *more, monkeypatch=monkeypatch)


def test_a_result_made_with_other_settings_is_refused(copy, monkeypatch):
    with pytest.raises(InputError, match=r"max_new_tokens = 12, but this run has .* = 13"):
        answer("icl", "--max_new_tokens", "13", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="temperature"):
        run(augment, *AUGMENT, "--temperature", "0.1", monkeypatch=monkeypatch)


def test_changed_data_is_not_answered_with_old_adapters(copy, monkeypatch):
    path = copy / "data_aug/demo/dev.json"
    records = json.loads(path.read_text())
    records[0]["augment"][0]["demo-model_rewrite"] += " And more."
    path.write_text(json.dumps(records))
    with pytest.raises(InputError, match="was made with data ="):
        run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="was made with data ="):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_adapters_from_another_base_are_refused(copy, monkeypatch):
    folder = copy / ADAPTERS / "data_1/passage_0"
    training = read_training(folder)
    (folder / "training_config.json").write_text(json.dumps({**training, "base": "other"}))
    with pytest.raises(InputError, match="different base adapters"):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_a_missing_adapter_is_named_with_the_command_that_makes_it(copy, monkeypatch):
    shutil.rmtree(copy / ADAPTERS / "data_2/passage_1")
    with pytest.raises(InputError, match=r"data_2/passage_1; run first: python src/encode\.py"):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_adapters_that_change_nothing_are_refused(copy, monkeypatch):
    for path in (copy / ADAPTERS).glob("*/*/adapter_model.safetensors"):
        save_file({k: torch.zeros_like(v) for k, v in load_file(path).items()}, path)
    with pytest.raises(InputError, match="change nothing"):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_a_corrupt_result_is_named_and_not_taken_for_an_empty_one(copy, monkeypatch):
    (copy / RESULTS / "icl/dev/predict.json").write_text('[{"test_id"')
    with pytest.raises(InputError, match="no valid JSON"):
        answer("icl", monkeypatch=monkeypatch)


def test_a_passage_whose_questions_never_parse_is_replaced_after_bounded_attempts(
    copy, monkeypatch, capsys
):
    shutil.rmtree(copy / "data_aug")
    shutil.rmtree(copy / "offline")
    tries = []

    def generate(model, tokenizer, prompts, *more, **keywords):
        texts = []
        for prompt in prompts:
            shown = tokenizer.decode(prompt)
            is_pairs = "JSON list" in shown
            passage = shown.split("Passage: ")[1].split("<|eot|>")[0]
            if is_pairs and passage == bad_passage:
                tries.append(passage)
                texts.append("[{'question': 'only one'}")
            elif is_pairs:
                pair = {"question": "Q?", "answer": "A", "full_answer": "A."}
                texts.append(json.dumps([pair] * 3))
            else:
                texts.append("rewritten " + passage)
        return texts

    question = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"][0]
    hits = open_retriever("embedded", "demo").search([question["question"]], 5)[0]
    bad_passage = hits[1]["text"]
    monkeypatch.setattr(augment, "generate", generate)
    flags = ("--sample", "1", "--max_attempts", "3")
    run(augment, *AUGMENT, *flags, monkeypatch=monkeypatch)
    record = json.loads((copy / "data_aug/demo/dev.json").read_text())[0]
    assert len(tries) == 3
    assert record["passages"] == [hits[i]["text"] for i in (0, 2, 3)]
    assert "3 taken, 1 dropped, 6 attempts" in capsys.readouterr().out


def test_a_second_model_adds_its_texts_beside_the_first_ones(copy, monkeypatch):
    other = copy / "other-model"
    shutil.copytree(MODEL, other)
    before = json.loads((copy / "data_aug/demo/dev.json").read_text())
    flags = [*AUGMENT, "--model_name", str(other), "--temperature", "0"]
    run(augment, *flags, monkeypatch=monkeypatch)
    after = json.loads((copy / "data_aug/demo/dev.json").read_text())
    entry = after[0]["augment"][0]
    assert entry["demo-model_qa"] == before[0]["augment"][0]["demo-model_qa"]
    assert entry["other-model_rewrite"] and len(entry["other-model_qa"]) == 3
    flags = [*DEV, *TRAIN, "--augment_model", str(other)]
    run(encode, *COMMON, *flags, monkeypatch=monkeypatch)
    assert (copy / ADAPTERS.replace("aug_model=demo-model", "aug_model=other-model")).is_dir()


def test_data_of_ones_own_goes_through_all_stages(copy, monkeypatch):
    corpus = copy / "mine.tsv"
    rows = ["Lake Orra lies in Vessland.", "Brun is the capital of Vessland.", "Tiro is a poet."]
    lines = [f"{i}\t{text}\tTitle {i}" for i, text in enumerate(rows)]
    corpus.write_text("id\ttext\ttitle\n" + "\n".join(lines) + "\n")
    questions = copy / "quiz.json"
    questions.write_text(
        json.dumps(
            [
                {"question": "Where is Lake Orra?", "answer": ["Vessland", "the Vessland"]},
                {"question": "What is the capital of Vessland?", "answer": "Brun"},
            ]
        )
    )
    pair = {"question": "Where is it?", "answer": "Vessland", "full_answer": "It is there."}
    monkeypatch.setattr(
        augment, "generate", lambda m, t, prompts, *a, **k: [json.dumps([pair] * 3)] * len(prompts)
    )
    index = ("--data_path", str(corpus), "--index_name", "mine")
    run(prep_elastic, *index, monkeypatch=monkeypatch)
    data = ("--dataset", "quizzes", "--data_path", str(questions), "--index_name", "mine")
    run(augment, *COMMON, *data, "--topk", "2", monkeypatch=monkeypatch)
    run(encode, *COMMON, "--dataset", "quizzes", *TRAIN, monkeypatch=monkeypatch)
    flags = ("--dataset", "quizzes", *TRAIN, "--inference_method", "combine")
    run(inference, *COMMON, *flags, monkeypatch=monkeypatch)
    leaf = copy / RESULTS.replace("/demo/", "/quizzes/") / "combine/quiz"
    assert len(json.loads((leaf / "predict.json").read_text())) == 2


def test_cot_goes_through_the_stages_and_without_examples_fails_early(copy, monkeypatch):
    (copy / "data_aug/hotpotqa").mkdir()
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())[:2]
    (copy / "data_aug/hotpotqa/bridge.json").write_text(json.dumps(records))
    flags = (*COMMON, "--dataset", "hotpotqa", "--with_cot", "--learning_rate", "4e-3")
    run(encode, *flags, monkeypatch=monkeypatch)
    run(inference, *flags, "--inference_method", "prag", monkeypatch=monkeypatch)
    leaf = RESULTS.replace("/demo/", "/hotpotqa/").replace("epoch=2", "epoch=1_cot")
    assert (copy / leaf / "prag/bridge/result.txt").is_file()

    def unwanted(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(encode, "load_model", unwanted)
    with pytest.raises(InputError, match="few-shot examples for 'demo'"):
        run(encode, *COMMON, *DEV, "--with_cot", monkeypatch=monkeypatch)


def test_a_users_mistake_is_one_sentence_and_exit_code_1():
    command = [sys.executable, str(REPOSITORY / "src/encode.py"), *COMMON, "--dataset", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and "augment.py" in done.stderr
    command += ["--num_train_epochs", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "not above 0" in done.stderr
