"""Adapters, results and augmented data that commit 4200079 made are accepted as they are."""

import shutil

import pytest
from conftest import REPOSITORY
from stage_runs import run, tree

import encode
import inference

MADE = REPOSITORY / "tests/data/made_by_4200079"
LABEL = "tiny-model/rank=2_alpha=32/demo/lr=0.004_epoch=1/aug_model=demo-model"


@pytest.fixture
def flags(root):
    """The flags that it was made with, in a copy of the whole."""
    shutil.copytree(MADE, root, dirs_exist_ok=True)
    flags = ["--model_name", str(root / "tiny-model"), "--prompts", "demo", "--dataset", "demo"]
    return [*flags, "--augment_model", "demo-model", "--learning_rate", "4e-3"]


def test_encode_finds_nothing_to_do(root, flags, capsys):
    before = tree(root)
    run(encode, *flags)
    assert "9 adapters exist already" in capsys.readouterr().out
    assert tree(root) == before
    run(encode, *flags, "--overwrite")  # and it would make the same
    weights = {name: data for name, data in before.items() if name.endswith(".safetensors")}
    assert {name: data for name, data in tree(root).items() if name in weights} == weights


def test_inference_answers_the_same_and_accepts_what_is_there(root, flags, capsys):
    before = tree(root)
    ways = [[method] for method in ("closed_book", "icl", "prag", "combine")]
    ways.append(["prag", "--merge_topk", "1", "--merge_scale", "0.5"])
    for again in (False, True):
        if again:
            shutil.rmtree(root / "output")
        for method, *more in ways:
            words = ["--inference_method", method, "--max_new_tokens", "6", *more]
            run(inference, *flags, *words)
        after = tree(root)
        names = [name for name in before if "predict" in name]
        assert [after[name] for name in names] == [before[name] for name in names]
        assert again or after == before
