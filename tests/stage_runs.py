"""Runs of the real scripts in the test's own process, with the bundled model and world."""

import json
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import inference
from utils.recipe import ACTIVE
from utils.running import InputError

MODEL = str(REPOSITORY / "data/demo/demo-model")
COMMON = ["--model_name", MODEL, "--prompts", "demo"]
DEV = ["--dataset", "demo", "--data_type", "dev"]
AUGMENT = [
    *COMMON, *DEV, "--data_path", str(REPOSITORY / "data/demo/questions.json"),
    "--index_name", "demo", "--sample", "4", "--max_new_tokens", "160", "--batch_size", "4",
]  # fmt: skip
TRAIN = ["--learning_rate", "4e-3", "--num_train_epochs", "2"]
ENCODE = [*COMMON, *DEV, *TRAIN]
ALL = [*COMMON, "--dataset", "demo", *TRAIN]
ADAPTERS = "offline/demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=2/aug_model=demo-model/dev"
RESULTS = "output/demo-model/rank=2_alpha=32/demo/lr=0.004_epoch=2/aug_model=demo-model"


def run(stage, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [stage.__name__, *arguments])
        stage.main()


def answer(method: str, *more: str) -> None:
    index = ["--index_name", "demo"] if method in ACTIVE else []
    run(inference, *ENCODE, "--inference_method", method, "--max_new_tokens", "12", *index, *more)


def watched(monkeypatch, holder, name: str) -> list[tuple]:
    """The arguments and the result of every call of a function from now on."""
    calls, function = [], getattr(holder, name)

    def watch(*arguments, **keywords):
        calls.append((*arguments, function(*arguments, **keywords)))
        return calls[-1][-1]

    monkeypatch.setattr(holder, name, watch)
    return calls


def tree(root: Path) -> dict[str, bytes]:
    """The files below `root`, without what says when and how long a run was."""
    files = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name in ("config.json", "training_config.json") or path.suffix == ".settings":
            held = json.loads(data)
            data = json.dumps({k: held[k] for k in held if k not in ("provenance", "measured")})
            data = data.encode()
        files[str(path.relative_to(root))] = data
    return files


def refused(message: str, call, *arguments, **keywords) -> str:
    """What `call` (`run`, `answer`, …) says in an `InputError` that matches `message`."""
    with pytest.raises(InputError, match=message) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


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
