"""What the stages refuse, before a model is loaded: one sentence with the value and a remedy."""

import importlib
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, edited, put
from stage_runs import ADAPTERS, AUGMENT, COMMON, ENCODE, MODEL, RESULTS, answer, refused, run

import augment
import encode
import inference
from utils import layout, running
from utils.augmentation.records import data_types_of

RECORD = {"question": "Who?", "answer": "Orr"}
WRITE = [*COMMON, "--dataset", "own", "--data_path", "{file}", "--index_name", "demo"]
DIRECT = ["--dataset", "own", "--data_path", "{file}", "--sample", "0"]
TRAINING = [*COMMON, "--data", "{file}"]


def encoding(words: str, message: str) -> tuple:
    return "encode", [*ENCODE, *words.split()], None, message


def answering(words: str, message: str) -> tuple:
    return "inference", [*ENCODE, "--inference_method", *words.split()], None, message


# script, flags, content of the file {file} (None: there is none; a value: as JSON), what is said
BAD = {
    "questions that are missing": ("augment", WRITE, None, "does not exist"),
    "half a character": ("augment", WRITE, [{**RECORD, "answer": "\ud83d"}], "surrogates not all"),
    "an unknown data type": (
        "augment", [*WRITE, "--data_type", "x"], {"\x1b[1mbold": [RECORD]}, r"own has  \[1mbold",
    ),
    "no golden passage": ("augment", [*WRITE, "--engine", "golden"], [RECORD], "golden_passages"),
    "fewer passages than topk": ("augment", [*WRITE, "--topk", "600"], [RECORD], "holds 540 .*600"),
    "an unknown index": ("augment", [*WRITE, "--index_name", "no"], [RECORD], "no index.*prep_e"),
    "a sample of 0": ("augment", [*WRITE, "--sample", "0"], [RECORD], "0 is not above 0"),
    "a temperature of -1": ("augment", [*WRITE, "--temperature", "-1"], [RECORD], "--temperature"),
    "an unknown model": encoding("--model_name none", "none: .*there is no such file or folder"),
    "a model in a folder without it": encoding("--model_name {folder}", r"no config\.json in it"),
    "an unaugmented data set": encoding("--dataset nowhere", "nowhere has no .*run python src/aug"),
    "texts of another model": encoding("--augment_model other", "--augment_mod"),
    "an unknown prompt set": encoding("--prompts none", "none: .*default, demo"),
    "no CoT examples": encoding("--with_cot", r"'demo': write .*fewshot/demo\.json .*drop --w"),
    "a start without adapter": encoding("--init_adapter {folder}", "no adapter in .*warmup_lora"),
    "a warm-up that was not trained": encoding("--init_adapter warmup",
        r"no adapter in .*warmup_direct.*warmup_lora\.py"),
    "an unknown method": answering("rag", "'rag'"),
    "an answer of -3 tokens": answering("icl --max_new_tokens -3", "-3 is not"),
    "an answer beyond the model": answering("icl --max_new_tokens 100000 --overwrite", "100000"),
    "no folder of data": ("get_warmup_data", ["--data_path", "{folder}"], None,
        "holds no folder named .*download"),
    "no record left": ("get_warmup_data", [*DIRECT, "--skip", "9"], [RECORD],
        "no record can be used; give a s"),
    "a sample that takes all": ("get_warmup_data", [*DIRECT, "--sample", "1"], [RECORD],
        "leaves none .*smaller number"),
    "missing records": ("warmup_lora", TRAINING, None, r"run src/get_warmup_data\.py first"),
    "a record that is too long": ("warmup_lora", [*TRAINING, "--block_size", "5"], [RECORD],
        "record 0 .*--block_size 5; rai"),
    "many greedy pairs": ("augment", [*WRITE, "--pairs", "6", "--temperature", "0"], None,
        "greedy texts are the same"),
    "a server without address": ("augment", [*WRITE, "--api_base", ""], None, "address"),
    "more passages to merge than there are": answering("prag --merge_topk 9",
        "--merge_topk 9 is more than the 3 passages"),
    "a merge without adapters": answering("icl --merge_topk 1", "merges no ad"),
    "an index of another name": answering("flare --index_name no", "no index at .*prep_elastic"),
    "more passages to retrieve than there are": answering(
        "dragin --index_name demo --retrieve_topk 600", "holds 540 .*--retrieve_topk 600"),
    "an index for a method that asks none": answering("icl --index_name demo", "asks no index; le"),
    "a probability of 2": answering("flare --flare_theta 2", "2 is not between 0 and 1"),
    "another method's threshold": answering("flare --dragin_words 2", "has no such .*--dragin_w"),
    "rounds of a method without": answering("icl --max_retrievals 2", "does not retrieve while"),
    "a random base that counts once": answering("prag --merge base_once", "needs --init_adap"),
    "noise for a method that reads no passages": answering("closed_book --noise all",
        "reads none of the passages of stage 1"),
    "a control of other passages": answering("flare --leave_out gold",
        "reads none of the passages of stage 1"),
    "other questions for a method that searches": answering("dragin --locality x.json",
        "keeps no passages for other questions"),
    "noise beside others' adapters": answering("prag --noise all --adapters others",
        "leave out --adapters others"),
    "neighbours that share": encoding("--shared 4 --neighbours 2", "for each .*leave out --shared"),
    "a control that shares": encoding("--shared 4 --adapters average", "leave out --shared"),
    "a base that is in no pool": answering("prag --shared 4 --merge base_once", "leave out --sha"),
    "an objective without questions": encoding("--objective distill --augment_parts rewrite",
        "needs questions; add qa"),
    "unknown parts": encoding("--augment_parts answers", "is not a part"),
    "no results of that model": ("report", ["--model_name", "none"], None, "no result to show"),
    "a part of an array that overwrites": answering("icl --overwrite --shard 0/2",
        "--overwrite would remove"),
    "a seed that torch does not take": encoding("--seed " + "9" * 20, "--seed: 9+ is not between"),
    "prompts of an unknown set": ("show_prompts", ["--prompts", "none"], None, "none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence_before_a_model_is_loaded(copy, monkeypatch, capsys, case):
    name, flags, content, message = case
    place = copy / "given.json"
    if content is not None:
        place.write_text(json.dumps(content))
    (copy / "empty").mkdir()
    words = [word.replace("{file}", str(place)) for word in flags]
    words = [word.replace("{folder}", str(copy / "empty")) for word in words]
    script = importlib.import_module(name)

    monkeypatch.setattr("utils.models.AutoModelForCausalLM", None)  # no model is loaded
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


def test_strange_names_change_nothing(copy):
    folder = copy / "data_aug/demo"
    (folder / "sub.json").mkdir()
    assert data_types_of("demo", None, MODEL) == ["dev"]
    other = copy / "data_aug" / layout.folder_name("my data/./日本 set")
    other.mkdir()
    (other / "a b.json").write_bytes((folder / "dev.json").read_bytes())
    assert data_types_of("my data/./日本 set", None, MODEL) == ["a b"]


def test_other_and_damaged_settings_and_adapters_of_another_base_are_refused(copy):
    words = r"max_new_tokens = 12, but this run has .* = 13"
    refused(words, answer, "icl", "--max_new_tokens", "13")
    refused("temperature", run, augment, *AUGMENT, "--temperature", "0.1")
    words = 'answers = "published", but this run has .* = "all"'
    refused(words, run, augment, *AUGMENT, "--answers", "all")
    (copy / "data_aug/demo/.dev.other.settings").write_text('{"answers": "all"}')
    refused("'all' by another model .*use --answers all", run, augment, *AUGMENT)
    with edited(copy / ADAPTERS / "data_1/passage_0/training_config.json") as training:
        training["base"] = "other"
    refused("different base adapters", answer, "prag", "--overwrite")
    for content in ("[]", '[{"em": 1}]', '[{"test_id"'):
        for file, *call in (
            (f"{RESULTS}/icl/dev/config.json", answer, "icl"),
            ("data_aug/demo/.dev.demo-model.settings", run, augment, *AUGMENT),
        ):
            put(copy / file, content)
            refused(file, *call)


def test_cot_goes_through_the_stages(copy):
    (copy / "data_aug/hotpotqa").mkdir()
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())[:2]
    (copy / "data_aug/hotpotqa/bridge.json").write_text(json.dumps(records))
    flags = (*COMMON, "--dataset", "hotpotqa", "--with_cot", "--learning_rate", "4e-3")
    run(encode, *flags)
    run(inference, *flags, "--inference_method", "prag")
    leaf = RESULTS.replace("/demo/", "/hotpotqa/").replace("epoch=2", "epoch=1_cot")
    assert (copy / leaf / "prag/bridge/result.txt").is_file()


def test_a_users_mistake_is_one_sentence_and_exit_code_1():
    command = [sys.executable, str(REPOSITORY / "src/encode.py"), *COMMON, "--dataset", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and "augment.py" in done.stderr


def test_the_out_of_memory_error_of_torch_is_one_sentence(capsys):
    def fail(error):
        raise error

    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for main in (lambda: fail(gpu), lambda: torch.empty(1 << 60)):
        with pytest.raises(SystemExit, match=r"error: the memory is full; .*--batch_size"):
            running.run_stage(main)
    with pytest.raises(RuntimeError):
        running.run_stage(lambda: fail(RuntimeError("a mistake in the program")))
    assert "Traceback" not in capsys.readouterr().err
