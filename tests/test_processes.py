"""The same work by one process, several of a launcher, or the jobs of an array: the same bytes."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from stage_runs import ADAPTERS, ENCODE, RESULTS, answer, refused, run, tree

import encode
from utils.arguments import shard_of
from utils.processes import refuse_launcher, start_processes

TWO_AT_A_TIME = [*ENCODE, "--adapters_per_batch", "2"]
ANSWER = [*ENCODE, "--inference_method", "combine", "--max_new_tokens", "12", "--batch_size", "1"]
COMBINE = ["combine", "--batch_size", "1"]
LAUNCHERS = {
    "accelerate": "accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes",
    "torchrun": "torch.distributed.run --standalone --nproc_per_node",
}


def launching(root, count: int, script: str, *flags: str, launcher: str = "torchrun") -> tuple:
    """The command that runs a stage in `count` processes, and its surroundings."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher].split(), str(count)]
    command += [str(REPOSITORY / "src" / script), *flags]
    return command, {"env": os.environ | {"PRAG_ROOT": str(root), "OMP_NUM_THREADS": "1"}}


def launch(root, count: int, script: str, *flags: str, launcher: str = "torchrun") -> str:
    """Run a stage in `count` processes; what they print."""
    command, how = launching(root, count, script, *flags, launcher=launcher)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without(root, *parts: str) -> None:
    for part in parts:
        shutil.rmtree(root / part)


@pytest.fixture
def encoded(copy):
    """A root whose adapters were trained two at a time, and its files."""
    without(copy, "offline", "output")
    run(encode, *TWO_AT_A_TIME)
    return copy, tree(copy / "offline")


def test_a_launcher_and_what_splits_or_spreads_alone_exclude_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception, match="a launcher splits the work already"):
        shard_of("0/2")
    refused("--device_map auto gives one process all GPUs", start_processes, None, "auto")
    refused(r"warmup_lora.py runs in one process", refuse_launcher, "warmup_lora.py")


@pytest.mark.parametrize("size, rank, message", [
    ("2", "", "RANK is '' and not a number .* unset WORLD_SIZE"),
    ("2", "2", "RANK is 2, but WORLD_SIZE 2; start with torchrun"),
    ("0", "0", "RANK is 0, but WORLD_SIZE 0|a launcher|in one process"),
    ("2", "0", "do not find each other .*MASTER_ADDR.* launch"),
    ("", "0", "WORLD_SIZE is ''"), ("two", "0", "WORLD_SIZE is 'two'"),
])  # fmt: skip
def test_variables_that_no_launcher_set_are_one_sentence(size, rank, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    readers = [lambda: start_processes(None, None)]
    if size != "2":
        readers += [lambda: refuse_launcher("warmup_lora.py"), lambda: shard_of("0/2")]
    for read in readers:
        with pytest.raises(Exception, match=message):
            read()


def test_jobs_of_an_array_encode_and_a_later_run_finds_all(encoded, monkeypatch, capsys):
    root, whole = encoded
    without(root, "offline")
    run(encode, *TWO_AT_A_TIME, "--shard", "1/2")
    first = set(tree(root / "offline"))
    assert 0 < len(first) < len(whole)
    assert "part 1 of 2 is done" in capsys.readouterr().out
    for part in ("2/3", "0/3", "1/3"):  # another number of jobs goes on
        run(encode, *TWO_AT_A_TIME, "--shard", part)
    assert tree(root / "offline") == whole
    monkeypatch.setattr("utils.experiment.load_model", None)  # nothing is left that needs it
    run(encode, *TWO_AT_A_TIME)
    assert tree(root / "offline") == whole


def test_jobs_of_an_array_answer_one_at_a_time_as_one_run_in_a_batch(copy, monkeypatch, capsys):
    batched = tree(copy / RESULTS / "combine")["dev/predict.json"]
    answer(*COMBINE, "--overwrite")
    whole = tree(copy / RESULTS / "combine")
    assert whole["dev/predict.json"] == batched
    without(copy, "output")
    for part in ("1/2", "0/2"):
        answer(*COMBINE, "--shard", part)
        assert not (copy / RESULTS / "combine/dev/result.txt").exists()
        assert "when all parts are, the same command without --shard" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("utils.experiment.load_model", None)  # nothing is left that needs it
        answer(*COMBINE)
    assert tree(copy / RESULTS / "combine") == whole
    without(copy, "output")
    answer(*COMBINE, "--shard", "2/3")
    answer(*COMBINE)  # what the other jobs left is done
    assert tree(copy / RESULTS / "combine") == whole
    # and so do two processes of a launcher, of which one speaks
    said = launch(copy, 2, "inference.py", *ANSWER, "--overwrite", launcher="accelerate")
    assert tree(copy / RESULTS / "combine") == whole and said.count("combine dev: em") == 1


@pytest.mark.slow
def test_a_launch_goes_on_after_a_killed_one_and_ends_with_the_same_bytes(encoded):
    """The first is killed while it trains; one with another number of processes goes on."""
    root, whole = encoded
    answer(*COMBINE)
    answers = tree(root / "output")
    without(root, "offline", "output")
    command, how = launching(root, 3, "encode.py", *TWO_AT_A_TIME)
    silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, start_new_session=True, **how, **silent)
    while process.poll() is None and not list((root / ADAPTERS).glob("*/passage_*")):
        pass
    os.killpg(process.pid, 9)
    process.wait()
    assert tree(root / ADAPTERS)
    launch(root, 2, "encode.py", *TWO_AT_A_TIME)
    assert tree(root / "offline") == whole
    for count in (2, 3):
        launch(root, count, "inference.py", *ANSWER, "--overwrite")
        assert tree(root / "output") == answers
