"""Every stage, stopped and started again: nothing is lost, and it ends with the same bytes.

The fast tests kill a forked process at a chosen change of the disk. The slow one sends signals to
the real scripts, each when a random number of pieces is complete: `PRAG_SEED` chooses others.
"""

import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapter_runs import changes_of, killed_at, room_for
from conftest import REPOSITORY, use_root
from stage_runs import AUGMENT, ENCODE, MODEL, refused, run, tree

from utils.retrieval.embedded import EmbeddedIndex

SEED = int(os.environ.get("PRAG_SEED", "7"))
SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
QUESTIONS = json.loads((REPOSITORY / "data/demo/questions.json").read_text())["dev"]


@dataclass
class Stage:
    """A script with its flags, a size in bytes that one of its files exceeds, what it reads."""

    script: str
    flags: list[str]
    size: int
    reads: tuple[str, ...] = ()


def stages() -> dict[str, Stage]:
    augment = [*AUGMENT, "--batch_size", "2"]
    answering = ["--inference_method", "combine", "--max_new_tokens", "12", "--batch_size", "1"]
    warmup = ["--model_name", MODEL, "--prompts", "demo", "--data", "{root}/direct.json"]
    corpus = ["--data_path", str(REPOSITORY / "data/demo/corpus.tsv")]
    training, reads = [*ENCODE, "--adapters_per_batch", "1"], ("index", "data_aug", "offline")
    return {
        "index": Stage("prep_elastic.py", corpus, 20_000),
        "augment": Stage("src/augment.py", augment, 10_000, reads[:1]),
        "encode": Stage("src/encode.py", training, 30_000, reads[:2]),
        "inference": Stage("src/inference.py", [*ENCODE, *answering], 1_300, reads),
        "warmup_lora": Stage("src/warmup_lora.py", [*warmup, "--save_steps", "2"], 30_000),
    }


def prepare(source: Path, root: Path, stage: Stage) -> None:
    """What the stage reads, in the fresh folder `root`."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for part in stage.reads:
        shutil.copytree(source / part, root / part)
    records = [{key: one[key] for key in ("question", "answer")} for one in QUESTIONS[-12:]]
    (root / "direct.json").write_text(json.dumps(records))


def finish(stage: Stage, root: Path) -> None:
    """Run the stage to its end, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        use_root(root, patch)
        flags = [flag.replace("{root}", str(root)) for flag in stage.flags]
        run(importlib.import_module(Path(stage.script).stem), *flags)


def state(root: Path, name: str) -> object:
    """What must not differ. Tantivy names its files at random: there it is what is found."""
    if name != "index":
        return tree(root)
    index = EmbeddedIndex(root / "index/wiki")
    manifest = json.loads((root / "index/wiki/manifest.json").read_text())
    manifest = {key: manifest[key] for key in manifest.keys() - {"files", "digest"}}
    found = index.search([one["question"] for one in QUESTIONS[:40]], 5)
    return sorted(os.listdir(root / "index")), manifest, found


def assert_nothing_half(root: Path, whole: object, name: str) -> None:
    """Every file that can be seen after a kill is one of the undisturbed run, to the last byte."""
    if name == "index":
        assert not (root / "index/wiki").exists() or state(root, name) == whole
        return
    for path, data in tree(root).items():
        if not any(part.startswith(".") for part in path.split("/")):
            assert whole[path] == data, path


@pytest.mark.usefixtures("capsys")  # else what a slow run says is a file, and the disk full for it
@pytest.mark.parametrize("name", stages())
def test_after_a_kill_and_a_full_disk_a_stage_goes_on_to_the_same_bytes(finished, tmp_path, name):
    stage, undisturbed, root = stages()[name], tmp_path / "undisturbed", tmp_path / "killed"
    prepare(finished, undisturbed, stage)
    changes = changes_of(lambda: finish(stage, undisturbed))
    whole = state(undisturbed, name)
    prepare(finished, root, stage)
    assert killed_at(1 + changes // 2, lambda: finish(stage, root))
    assert_nothing_half(root, whole, name)
    with room_for(stage.size):
        refused(r"cannot be written .*PRAG_ROOT", finish, stage, root)
    assert_nothing_half(root, whole, name)
    assert not list(root.rglob("*.tmp"))
    finish(stage, root)
    assert state(root, name) == whole


def pieces(root: Path) -> int:
    """How much is complete: visible files, and lines of journals while a file is not there yet."""
    # os.walk passes over a folder that vanishes meanwhile, where rglob raises
    files = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    visible = [path for path in files if not path.relative_to(root).as_posix().count("/.")]
    lines = 0
    for path in files:
        if ".journal." in path.name:
            with suppress(FileNotFoundError):
                lines += path.read_bytes().count(b"\n")
    return 1000 * len(visible) + lines


def strike(stage: Stage, root: Path, number: int, wanted: int) -> bool:
    """Send the stage the signal when `wanted` pieces more are complete; whether it still ran."""
    held, command = pieces(root), [sys.executable, str(REPOSITORY / stage.script)]
    command += [word.replace("{root}", str(root)) for word in stage.flags]
    how = {"env": os.environ | {"PRAG_ROOT": str(root), "OMP_NUM_THREADS": "1"}}
    # a shell's background job would hand down that Ctrl-C is ignored
    how |= {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    how |= {"stdout": subprocess.DEVNULL, "start_new_session": True}
    with open(f"{root}.err", "w") as err:
        process = subprocess.Popen(command, stderr=err, **how)
    while process.poll() is None and pieces(root) < held + wanted:
        time.sleep(0.002)
    process.send_signal(number)
    text = f"{process.wait()} {Path(f'{root}.err').read_text()}"
    if process.returncode == 0:  # it was faster
        return False
    assert pieces(root) >= held, "something complete was lost"
    assert process.returncode in (-number, 128 + number), text
    assert "Traceback" not in text and "Exception ignored" not in text, text
    if process.returncode > 0:
        assert "start the same command again" in text.splitlines()[-1], text
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", stages())
def test_killed_many_times_by_signals(finished, tmp_path, name):
    chance = random.Random(f"{SEED} {name}")
    stage, undisturbed, root = stages()[name], tmp_path / "undisturbed", tmp_path / "killed"
    for place in (undisturbed, root):
        prepare(finished, place, stage)
    finish(stage, undisturbed)
    whole, sent = state(undisturbed, name), 0
    while sent < 8:
        number, wanted = chance.choice(SIGNALS), chance.choice((0, 1, 2, 3, 1000, 3000))
        struck = strike(stage, root, number, wanted)
        if struck:
            sent += 1
            assert_nothing_half(root, whole, name)
        else:
            assert state(root, name) == whole
        # it is finished, and an index that exists is not built again: begin from nothing
        if not struck or (root / "index/wiki").exists():
            prepare(finished, root, stage)
    finish(stage, root)
    assert state(root, name) == whole
