"""Stage 1 over processes, jobs of an array and restarts with another number of them: same bytes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fake_openai import FakeOpenAI
from stage_runs import AUGMENT, run, tree
from test_server import instant

import augment
from utils.augmentation import writing

# so few tokens that some lists are cut off: passages are dropped, and there are several waves
WAVES = [flag for flag in AUGMENT if flag not in ("--data_type", "dev")]
WAVES += ["--sample", "5", "--max_new_tokens", "96", "--max_attempts", "2"]
FILES = ["demo/.dev.demo-model.settings", "demo/.test.demo-model.settings", "demo/dev.json",
         "demo/test.json"]  # fmt: skip


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory) -> dict[str, bytes]:
    """What one process writes in one go."""
    root = index_alone(finished, tmp_path_factory.mktemp("whole") / "root")
    assert launched(root, 1, WAVES).wait() == 0, said(root)
    assert " 0 dropped" not in Path(f"{root}.out").read_text()
    files = tree(root / "data_aug")
    assert sorted(files) == FILES
    return files


def index_alone(finished: Path, root: Path) -> Path:
    shutil.copytree(finished / "index", root / "index")
    return root


def launched(root: Path, processes: int, flags: list[str]) -> subprocess.Popen:
    """The real script in so many processes; its output goes to `root`.out and .err."""
    launcher = []
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launcher += ["--master_port", port]
    with open(f"{root}.out", "w") as out, open(f"{root}.err", "w") as err:
        return subprocess.Popen(
            [sys.executable, *launcher, str(REPOSITORY / "src/augment.py"), *flags],
            env=os.environ | {"PRAG_ROOT": str(root), "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def said(root: Path) -> str:
    return Path(f"{root}.out").read_text() + Path(f"{root}.err").read_text()


def test_two_processes_end_with_the_bytes_of_one(finished, whole, tmp_path):
    root = index_alone(finished, tmp_path / "root")
    assert launched(root, 2, WAVES).wait() == 0, said(root)
    assert tree(root / "data_aug") == whole
    assert Path(f"{root}.out").read_text().count("wanted") == 1  # only the main process speaks
    assert "Traceback" not in said(root)


def test_jobs_of_an_array_and_a_run_that_puts_them_together(
    finished, whole, root, monkeypatch, capsys
):
    index_alone(finished, root)
    written = []
    original = writing.write_chunk

    def write_chunk(chunk, **keywords):
        written.append(list(chunk))
        return original(chunk, **keywords)

    monkeypatch.setattr(writing, "write_chunk", write_chunk)
    for job in ("1/3", "0/3", "2/3"):
        run(augment, *WAVES, "--shard", job, monkeypatch=monkeypatch)
        part = f"part {job[0]} of 3 is done; when all parts are, the same command without --shard"
        assert part in capsys.readouterr().out
        assert not list((root / "data_aug/demo").glob("*.json"))
    in_jobs = len(written)
    run(augment, *WAVES, monkeypatch=monkeypatch)
    # the jobs wrote the first wave, the last run the next ones
    assert 0 < len(written) - in_jobs < in_jobs
    assert sum(map(len, written)) == len({key for chunk in written for key in chunk})
    assert tree(root / "data_aug") == whole


@pytest.mark.slow
def test_a_restart_with_another_number_of_processes_ends_with_the_same_bytes(
    finished, whole, root, tmp_path, monkeypatch
):
    """Two processes killed, three killed, then one job of an array, then two to the end."""
    index_alone(finished, root)
    for number, processes in ((signal.SIGKILL, 2), (signal.SIGTERM, 3)):
        before = lines(root)
        process = launched(root, processes, WAVES)
        deadline = time.monotonic() + 120
        while lines(root) < before + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, said(root)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(60) != 0
        assert lines(root) >= before + 2
        assert not list((root / "data_aug/demo").glob("*.json"))
    run(augment, *WAVES, "--shard", "3/4", monkeypatch=monkeypatch)
    assert launched(root, 2, WAVES).wait() == 0, said(root)
    assert tree(root / "data_aug") == whole


def lines(root: Path) -> int:
    parts = root.glob("data_aug/demo/.*journal.*")
    return sum(part.read_bytes().count(b"\n") - 1 for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--write_per_question"]])
def test_three_processes_and_a_server(finished, tmp_path, flags):
    """Each process asks the server for its own share."""
    files = []
    with FakeOpenAI(instant) as fake:
        for processes in (1, 3):
            fake.requests.clear()
            root = index_alone(finished, tmp_path / f"{processes}")
            more = ["--api_base", fake.url, "--api_concurrency", "2", *flags]
            assert launched(root, processes, [*WAVES, *more]).wait() == 0, said(root)
            files.append(tree(root / "data_aug"))
            assert len({str(request) for request in fake.requests}) == len(fake.requests)
    assert files[0] == files[1]
