"""Bad input to every script: one sentence with the value and a remedy, before a model is loaded."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from stage_runs import COMMON, DEV, MODEL, TRAIN

from utils import layout, running
from utils.augmentation import records as augmented
from utils.augmentation.records import parse_pairs, read_augmented
from utils.questions import load_questions

LONG = "x" * 300
RECORD = {"question": "Who?", "answer": "Orr"}
HEADER = "id\ttext\ttitle\n"
ROW = "1\tcats sat\tCats\n"
DEMO = str(REPOSITORY / "data/demo/questions.json")
AUGMENT = [*COMMON, "--dataset", "own", "--data_path", "{file}", "--index_name", "demo"]
ENCODE = [*COMMON, *DEV, *TRAIN]
ANSWER = [*ENCODE, "--inference_method", "icl"]
DIRECT = ["--dataset", "own", "--data_path", "{file}", "--sample", "0"]
TRAINING = [*COMMON, "--data", "{file}"]
INDEX = ["--index_name", "new", "--data_path", "{file}"]
LIST = "a list of records|list of texts|must be an object"


def augmented_with(**changes) -> list[dict]:
    entry = {"pid": 0, "passage": "p", "demo-model_rewrite": "r", "demo-model_qa": [{**PAIR}] * 3}
    record = {"test_id": 0, "question": "Who?", "answer": "Orr", "passages": ["p"]}
    return [{**record, "augment": [{**entry, **changes}]}]


PAIR = {"question": "Q?", "answer": "a", "full_answer": "It is a."}

# script, flags, content of the file {file} (None: there is none; a value: as JSON), what is said
BAD = {
    # files
    "a corpus that is missing": ("prep_elastic", INDEX, None, "does not exist; give"),
    "a corpus that is empty": ("prep_elastic", INDEX, b"", "no passage|header"),
    "a corpus without a row": ("prep_elastic", INDEX, HEADER, "no passage below"),
    "a corpus without header": ("prep_elastic", INDEX, ROW, "header.*add that line"),
    "a corpus that is Latin-1": ("prep_elastic", INDEX, b"id\ttext\ttitle\n1\t\xe9\tx\n", "UTF-8"),
    "a row of two columns": ("prep_elastic", INDEX, HEADER + "1\tx\n", "line 2 .*2 columns"),
    "a row without text": ("prep_elastic", INDEX, HEADER + "1\t \tx\n", "line 2 .*empty text"),
    "an open quote": ("prep_elastic", INDEX, HEADER + '1\t"x\ty\n', "line 2 .*no valid TSV"),
    "a folder as corpus": ("prep_elastic", [*INDEX[:3], "{folder}"], None, "is a folder; give"),
    "an index that stands": (
        "prep_elastic", ["--index_name", "demo", "--data_path", "{file}"], HEADER + ROW,
        "exists already.*--overwrite",
    ),
    "questions that are missing": ("augment", AUGMENT, None, "does not exist"),
    "questions that are empty": ("augment", AUGMENT, b"", "no valid JSON.*damaged"),
    "questions that are cut off": ("augment", AUGMENT, b'[{"question": "Wh', "no valid JSON.*cut"),
    "questions in Latin-1": ("augment", AUGMENT, b'[{"question": "\xe9"}]', "UTF-8.*convert"),
    "questions in UTF-16": ("augment", AUGMENT, "[1]".encode("utf-16"), "UTF-8.*convert"),
    "an unreadable path": ("augment", [*AUGMENT[:7], f"/{LONG}.json"], None, "too long|not exist"),
    "a folder of one's own data": ("augment", [*AUGMENT[:7], "{folder}"], None, "is a folder"),
    "a thousand nested lists": ("augment", AUGMENT, b"[" * 100_000, "nested|no valid JSON"),
    "a number of 9000 digits": ("augment", AUGMENT, b"9" * 9000, "digits"),
    "half a character": (
        "augment", AUGMENT, b'[{"question": "\\ud83d?", "answer": "a"}]', "half a character",
    ),
    # records
    "JSON that is no list": ("augment", AUGMENT, 3, LIST),
    "a list of texts": ("augment", AUGMENT, ["a"], "record 0 is a text"),
    "no records": ("augment", AUGMENT, [], "empty list"),
    "a record without question": ("augment", AUGMENT, [{"answer": "a"}], "0 has no question"),
    "a record without answer": ("augment", AUGMENT, [{"question": "Q"}], "0 has no answer"),
    "an empty list of answers": ("augment", AUGMENT, [{**RECORD, "answer": []}], "empty list"),
    "a number as answer": (
        "augment", AUGMENT, [RECORD, {**RECORD, "answer": 7}], "record 1: answer",
    ),
    "an empty question": ("augment", AUGMENT, [{**RECORD, "question": " "}], "an empty text"),
    "passages that are no texts": (
        "augment", AUGMENT, [{**RECORD, "golden_passages": [1]}], "golden_passages",
    ),
    "two data types of one name": (
        "augment", AUGMENT, {"a b": [RECORD], "a_b": [RECORD]}, "rename",
    ),
    "a data type that is a path": ("augment", AUGMENT, {"../..": [RECORD]}, "as a folder name"),
    # flags
    "an unknown data type": ("augment", [*AUGMENT, "--data_type", "x"], [RECORD], "x: own has"),
    "no golden passage": ("augment", [*AUGMENT, "--engine", "golden"], [RECORD], "golden_passages"),
    "fewer passages than topk": (
        "augment", [*AUGMENT, "--topk", "600"], [RECORD], "holds 540 .*600",
    ),
    "an unknown index": ("augment", [*AUGMENT, "--index_name", "no"], [RECORD], "no index.*prep_e"),
    "an index name without letters": (
        "augment", [*AUGMENT, "--index_name", "../.."], [RECORD], "as a folder name",
    ),
    "a data set name of 300 characters": (
        "augment", [*AUGMENT, "--dataset", LONG], [RECORD], "as a folder name",
    ),
    "a sample of 0": ("augment", [*AUGMENT, "--sample", "0"], [RECORD], "--sample 0.*above 0"),
    "a sample of -2": ("encode", [*ENCODE, "--sample", "-2"], None, "--sample -2.*above 0"),
    "a topk of 0": ("augment", [*AUGMENT, "--topk", "0"], [RECORD], "topk.*0 is not above 0"),
    "a temperature below 0": (
        "augment", [*AUGMENT, "--temperature", "-1"], [RECORD], "--temperature",
    ),
    "a temperature that is none": (
        "augment", [*AUGMENT, "--temperature", "nan"], [RECORD], "--temperature",
    ),
    "an engine of another name": ("augment", [*AUGMENT, "--engine", "lucene"], None, "--engine"),
    "a flag that is misspelt": ("encode", [*ENCODE, "--overwrit"], None, "--overwrit"),
    "a dtype of another name": ("encode", [*ENCODE, "--dtype", "int8"], None, "--dtype.*int8"),
    "an unknown model": (
        "encode", [*ENCODE, "--model_name", "none"], None, "none: .*give a folder",
    ),
    "a model in a folder without it": (
        "encode", [*ENCODE, "--model_name", "{folder}"], None, r"no config\.json",
    ),
    "a data set that nobody augmented": (
        "encode", [*ENCODE, "--dataset", "nowhere"], None, r"nowhere has no .*run python src/aug",
    ),
    "texts of another model": (
        "encode", [*ENCODE, "--augment_model", "other"], None, "--augment_mod",
    ),
    "an unknown prompt set": (
        "encode", [*ENCODE, "--prompts", "none"], None, "none: .*default, demo",
    ),
    "a prompt set that is no object": (
        "encode", [*ENCODE, "--prompts", "{file}"], [1], "has no text 'rewrite'; add it",
    ),
    "CoT without examples": (
        "encode", [*ENCODE, "--with_cot"], None, "few-shot examples for 'demo'",
    ),
    "a learning rate of 0": ("encode", [*ENCODE, "--learning_rate", "0"], None, "above 0"),
    "a rank that is a fraction": ("encode", [*ENCODE, "--lora_rank", "1.5"], None, "1.5"),
    "a start that is no adapter": (
        "encode", [*ENCODE, "--init_adapter", "{folder}"], None, "no adapter in .*warmup_lora",
    ),
    "no warm-up yet": (
        "encode", [*ENCODE, "--init_adapter", "warmup"], None, "no adapter in .*warmup",
    ),
    "unknown parts": ("encode", [*ENCODE, "--augment_parts", "title"], None, "'title' is no part"),
    "an unknown method": ("inference", [*ENCODE, "--inference_method", "rag"], None, "'rag'"),
    "merging without adapters": ("inference", [*ANSWER, "--merge_topk", "1"], None, "merges no"),
    "base_once without a start": (
        "inference",
        [*ENCODE, "--inference_method", "prag", "--merge", "base_once"], None, "--init_adapter",
    ),
    "adapters that are missing": (
        "inference", [*ENCODE, "--inference_method", "prag", "--learning_rate", "1"], None,
        r"no adapter in .*run first: python src/encode\.py .*--learning_rate 1",
    ),
    "an answer of -3 tokens": ("inference", [*ANSWER, "--max_new_tokens", "-3"], None, "-3 is not"),
    "an answer longer than the model": (
        "inference", [*ANSWER, "--max_new_tokens", "100000", "--overwrite"], None, "100000",
    ),
    "a text longer than the model": (
        "augment", [*AUGMENT, "--max_new_tokens", "100000"], [RECORD], "100000",
    ),
    # augmented files
    "augment that is no list": (
        "encode", ENCODE, [{**RECORD, "test_id": 0, "augment": 1}], "augment is",
    ),
    "a passage without text": ("encode", ENCODE, augmented_with(passage=3), "passage is a number"),
    "an empty list of pairs": (
        "encode", ENCODE, augmented_with(**{"demo-model_qa": []}), "empty list",
    ),
    "a pair without answer": (
        "inference", ANSWER, augmented_with(**{"demo-model_qa": [{"question": "Q"}]}), "is missing",
    ),
    "a test_id that is a text": (
        "encode", ENCODE, [{**augmented_with()[0], "test_id": "a"}], "test_id",
    ),
    # the warm-up
    "no folder of data": (
        "get_warmup_data", ["--data_path", "{folder}"], None, "holds no folder named .*download",
    ),
    "no record left": (
        "get_warmup_data", [*DIRECT, "--skip", "9"], [RECORD], "no record can be used; give a s",
    ),
    "a sample that takes all": (
        "get_warmup_data", [*DIRECT, "--sample", "1"], [RECORD], "none is left .*smaller number",
    ),
    "a sample below 0": ("get_warmup_data", [*DIRECT, "--sample", "-5"], [RECORD], "-5 is below 0"),
    "records that are missing": (
        "warmup_lora", TRAINING, None, r"run src/get_warmup_data\.py first",
    ),
    "records without answer": ("warmup_lora", TRAINING, [{"question": "Q?"}], "no text 'answer'"),
    "records that are no list": ("warmup_lora", TRAINING, {"a": 1}, "not a list of records"),
    "a record that is too long": (
        "warmup_lora", [*TRAINING, "--block_size", "5"], [RECORD], "record 0 .*--block_size 5; rai",
    ),
    # findings of a reviewer
    "a key twice": (
        "augment", AUGMENT, b'{"a": [{"question": "Q", "answer": "A"}], "a": []}', 'key "a" twice',
    ),
    "an empty golden passage": (
        "augment", AUGMENT, [{**RECORD, "golden_passages": [""]}], "golden_passages .* empty",
    ),
    "a server without address": ("augment", [*AUGMENT, "--api_base", ""], None, "address"),
    "no whole number": ("augment", [*AUGMENT, "--topk", "1e3"], None, "'1e3' is no whole number"),
    "no number": ("encode", [*ENCODE[:-4], "--learning_rate", "fast"], None, "'fast' is no number"),
    "more passages to merge than there are": (
        "inference",
        [*COMMON, *DEV, *TRAIN, "--inference_method", "prag", "--merge_topk", "9"],
        None, "--merge_topk 9 is more than the 3 passages",
    ),
    "an augmented record without answers": (
        "encode", ENCODE,
        [{"test_id": 0, "question": "Q", "answer": [], "augment": []}], "answer has no text",
    ),
    # the report and the prompts
    "no results of that model": (
        "report", ["--model_name", "none"], None, "no result of none.*run",
    ),
    "no results of that data set": ("report", ["--dataset", "none"], None, "no result of none"),
    "no resamples": ("report", ["--bootstrap_samples", "0"], None, "0"),
    "a seed below 0": ("report", ["--seed", "-1"], None, "--seed: -1 is not between"),
    "a seed that torch does not take": (
        "encode", [*ENCODE, "--seed", "9" * 20], None, "--seed: 9+ is not between",
    ),
    "prompts of an unknown set": ("show_prompts", ["--prompts", "none"], None, "none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_before_a_model_is_loaded(copy, monkeypatch, capsys, case):
    name, flags, content, message = case
    place = copy / "given.json"
    if "{file}" not in flags and content is not None:
        place = copy / "data_aug/demo/dev.json"
    if isinstance(content, str | bytes):
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    elif content is not None:
        place.write_text(json.dumps(content))
    (copy / "empty").mkdir()
    words = [word.replace("{file}", str(place)) for word in flags]
    words = [word.replace("{folder}", str(copy / "empty")) for word in words]
    script = importlib.import_module(name)

    def unwanted(*arguments):
        raise AssertionError("a model was loaded")

    if hasattr(script, "model_of"):
        monkeypatch.setattr(script, "model_of", unwanted)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as ended:
        running.run_stage(script.main)
    said = capsys.readouterr().err
    if ended.value.code == 2:  # argparse shows the usage first
        said = said.strip().splitlines()[-1]
        assert said.startswith(f"{name}.py: error: ")
    else:
        said = str(ended.value.code)
        assert said.startswith("error: ") and "\n" not in said
    assert "Traceback" not in said
    assert re.search(message, said), said


def test_a_script_itself_ends_so(tmp_path):
    environment = os.environ | {"PRAG_ROOT": str(tmp_path)}
    command = [sys.executable, str(REPOSITORY / "src/warmup_lora.py"), *COMMON, "--data", "no.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_questions_that_come_twice_are_said(tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps([RECORD, {**RECORD, "question": "Where?"}, RECORD, RECORD]))
    assert len(load_questions("own", path)["own"]) == 4
    assert "2 questions come again, such as that of record 2: 'Who?'" in capsys.readouterr().err


def test_stray_files_and_strange_names_change_nothing(copy, monkeypatch, capsys):
    folder = copy / "data_aug/demo"
    for name in (".DS_Store", "total.json.bak", ".total.json.swp", "notes.txt", "dev (1).txt"):
        (folder / name).write_text("[{")
    (folder / "sub.json").mkdir()
    assert augmented.data_types_of("demo") == ["dev"]
    assert len(read_augmented("demo", "dev", MODEL)) == 4
    other = copy / "data_aug" / layout.folder_name("my data/./日本 set")
    other.mkdir()
    (other / "a b.json").write_bytes((folder / "dev.json").read_bytes())
    assert augmented.data_types_of("my data/./日本 set") == ["a b"]


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + json.dumps([PAIR] * 3) + "\n```",
        str([PAIR] * 3),
        json.dumps([PAIR] * 5000),
        json.dumps({"pairs": [PAIR] * 3}),
    ],
)
def test_what_a_model_wraps_around_its_list_does_not_matter(text):
    assert parse_pairs(text) == [PAIR] * 3
