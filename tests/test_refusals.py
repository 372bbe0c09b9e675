"""What the stages refuse to go on with, and how they say it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from stage_runs import (
    ADAPTERS,
    AUGMENT,
    COMMON,
    DEV,
    RESULTS,
    TRAIN,
    answer,
    run,
)

import augment
import encode
import inference
from utils.running import InputError
from utils.store.folders import read_training


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
        record = json.loads((path.parent / "training_config.json").read_text())
        del record["weights_hash"]
        (path.parent / "training_config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="change nothing"):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_a_corrupt_result_is_named_and_not_taken_for_an_empty_one(copy, monkeypatch):
    (copy / RESULTS / "icl/dev/predict.json").write_text('[{"test_id"')
    with pytest.raises(InputError, match="no valid JSON"):
        answer("icl", monkeypatch=monkeypatch)


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

    monkeypatch.setattr(encode, "model_of", unwanted)
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
