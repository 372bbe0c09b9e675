"""Faults of the disk, of files and of servers: refused in one sentence, never taken for data."""

import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from conftest import REPOSITORY, put
from stage_runs import AUGMENT, ENCODE, RESULTS, answer, refused, run, tree

import augment
import encode
import inference
import prep_elastic
from utils import files, running
from utils.files import write_json, writing_file, writing_folder
from utils.journal import Journal
from utils.retrieval.embedded import EmbeddedIndex
from utils.running import InputError

CORPUS = str(REPOSITORY / "data/demo/corpus.tsv")
ANSWER = [*ENCODE, "--inference_method", "prag", "--max_new_tokens", "12"]


@contextmanager
def room_for(size: int):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("size", "removed", "stage", "flags"), [
    (10_000, "data_aug", augment, AUGMENT),
    (30_000, "offline", encode, ENCODE),
    (1_300, "output", inference, ANSWER),
    (20_000, "index", prep_elastic, ["--data_path", CORPUS, "--index_name", "demo"]),
])  # fmt: skip
def test_a_full_disk_is_named_and_a_run_goes_on_later(finished, copy, size, removed, stage, flags):
    shutil.rmtree(copy / removed)
    whole = tree(finished / removed)
    with room_for(size), pytest.raises(InputError, match=r"cannot be written .*PRAG_ROOT"):
        run(stage, *flags)
    assert not list(copy.rglob("*.tmp"))
    for name, data in tree(copy / removed).items():
        assert "/." in f"/{name}" or whole[name] == data, name
    run(stage, *flags)
    if removed == "index":
        questions = ["Which company was founded in the port?", "Who directed it?"]
        indices = [EmbeddedIndex(root / "index/demo") for root in (copy, finished)]
        assert indices[0].search(questions, 3) == indices[1].search(questions, 3)
        return
    for name, data in tree(copy / removed).items():
        assert whole[name] == data, name


def test_a_journal_takes_a_line_as_a_whole_or_goes_on_without_it(tmp_path):
    path = tmp_path / "j"
    journal = Journal(path, {"seed": 1})
    journal.add("a")
    with room_for(40), pytest.raises(InputError, match="cannot be written"):
        journal.add("b" * 100)
    journal.close()
    assert (tmp_path / "j.0").stat().st_size == 40
    again = Journal(path, {"seed": 1})
    assert again.items == ["a"]
    again.add("c")
    again.close()
    assert Journal(path, {"seed": 1}).items == ["a", "c"]


def test_a_folder_that_takes_no_file_is_named(tmp_path):
    (tmp_path / "data_aug").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"data_aug/demo/dev.json cannot be written \(Not a dir"):
        write_json(tmp_path / "data_aug/demo/dev.json", [])
    refused("cannot be written", Journal, tmp_path / "data_aug/demo/.dev.journal", {})


def test_leftovers_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(tmp_path):
    me, machine = os.getpid(), files._machine()
    dead = 2**22 + 1  # above the largest process id
    names = {  # and whether it stays
        f".a.json.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f"..b.{machine}-{dead}-0123abcd-x.tmp.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f".a.json.{machine}-{me}-0123abcd-xyz.tmp": False,  # an earlier process with our id
        f".a.json.{machine}-{me}-{files.RUN}-xyz.tmp": True,
        f".a.json.{machine}-{os.getppid()}-0123abcd-xyz.tmp": True,
        f".a.json.00000000-{dead}-0123abcd-xyz.tmp": True,  # another machine, just now
        f".old.00000000-{dead}-0123abcd-xyz.tmp": False,  # another machine, days ago
        ".mine.tmp": True,  # not ours
        f"a.json.{machine}-{dead}-0123abcd-xyz.tmp": True,
    }
    for name in names:
        place = tmp_path / name / ".tmpAb1" if "..b" in name else tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("half")
    os.utime(tmp_path / f".old.00000000-{dead}-0123abcd-xyz.tmp", (1, 1))
    with writing_file(tmp_path / "a.json") as temporary:
        left = {name for name in names if (tmp_path / name).exists()}
        assert left == {name for name, stays in names.items() if stays}
        with writing_folder(tmp_path / "folder") as other:
            assert temporary.exists() and other.exists()
    assert (tmp_path / "a.json").exists() and (tmp_path / "folder").is_dir()


@pytest.mark.parametrize(("content", "message"), [
    (b"[]\n", "damaged in line 1"),
    (b"\x80\x00\xff\n\x13" * 9, "damaged in line 1"),
    (b'{"seed": 1}\n"a"\n\x00\x00\x00\n"c"\n', "damaged in line 3"),
    (b'{"seed": 1}\n"a"\n"b\n"c"\n', "damaged in line 3"),
    (b"[" * 100_000 + b"\n", "damaged in line 1"),
    (b'{"seed": 1}\n' + bytes(500), None),  # a power failure can leave such an end
])  # fmt: skip
def test_a_journal_loses_a_cut_off_end_and_other_damage_is_named(tmp_path, content, message):
    path, own = tmp_path / "j", tmp_path / "j.0"
    own.write_bytes(content)
    if message is None:
        assert Journal(path, {"seed": 1}).items == []
        return
    refused(message + r"; remove it, or use --overwrite", Journal, path, {"seed": 1})
    assert own.read_bytes() == content


@pytest.mark.parametrize("content", ["[]", '[{"em": 1}]', '[{"test_id"'])
def test_a_damaged_settings_file_of_a_stage_is_named(copy, content):
    for file, *call in (
        (f"{RESULTS}/icl/dev/config.json", answer, "icl"),
        ("data_aug/demo/.dev.demo-model.settings", run, augment, *AUGMENT),
    ):
        put(copy / file, content)
        refused(file, *call)


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
