"""Stage 1 over processes and jobs of an array: the same bytes. Kills are in test_kills.py."""

import os
import shutil
import subprocess
import sys

import pytest
from augment_runs import hits_of, instantly
from conftest import REPOSITORY
from stage_runs import AUGMENT, run, tree

import augment

pytest_plugins = ["augment_runs"]
# so few tokens that some lists are cut off: passages are dropped, and there are several waves
WAVES = [flag for flag in AUGMENT if flag not in ("--data_type", "dev")]
WAVES += ["--sample", "5", "--max_new_tokens", "96", "--max_attempts", "2"]


@pytest.mark.slow
def test_two_processes_end_with_the_bytes_of_one(indexed, monkeypatch, capsys):
    run(augment, *WAVES, monkeypatch=monkeypatch)
    assert " 0 dropped" not in capsys.readouterr().out
    whole = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    said = subprocess.check_output(
        [*launcher, "--nproc_per_node", "2", str(REPOSITORY / "src/augment.py"), *WAVES],
        env=os.environ | {"PRAG_ROOT": str(indexed), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert tree(indexed / "data_aug") == whole
    assert said.count("wanted") == 1  # only the main process speaks


def test_jobs_of_an_array_and_a_run_that_puts_them_together(
    indexed, demo_index, monkeypatch, capsys
):
    bad = {hits_of(demo_index, "dev", number)[number]["text"] for number in range(3)}
    asked = instantly(monkeypatch, bad)
    run(augment, *WAVES, monkeypatch=monkeypatch)
    whole = tree(indexed / "data_aug")
    shutil.rmtree(indexed / "data_aug")
    asked.clear()
    capsys.readouterr()
    for job in ("1/3", "0/3", "2/3"):
        run(augment, *WAVES, "--shard", job, monkeypatch=monkeypatch)
        part = f"part {job[0]} of 3 is done; when all parts are, the same command without --shard"
        assert part in capsys.readouterr().out
        assert not list((indexed / "data_aug/demo").glob("*.json"))
    in_jobs = len(asked)
    run(augment, *WAVES, monkeypatch=monkeypatch)
    # the jobs wrote the first wave, the last run what takes the place of dropped passages
    assert 0 < len(asked) - in_jobs < in_jobs
    assert tree(indexed / "data_aug") == whole
