"""Faults of the disk, of files and of servers: refused in one sentence, never taken for data."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from stage_runs import ADAPTERS, AUGMENT, COMMON, DEV, RESULTS, TRAIN, answer, run, tree
from test_retrieval import PASSAGES, write_corpus
from test_warmup import WARM, direct_data, flags_for  # noqa: F401

import augment
import encode
import inference
import prep_elastic
import warmup_lora
from utils import paths
from utils.files import write_json, writing_file, writing_folder
from utils.journal import Journal
from utils.retrieval.embedded import EmbeddedIndex, build_index
from utils.running import InputError

pytest_plugins = ["elastic_fixtures"]
CORPUS = str(REPOSITORY / "data/demo/corpus.tsv")
PRAG = f"{RESULTS}/prag/dev"

# ------------------------------------------------------------------------------------------------
# A full disk


@contextmanager
def room_for(size: int):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def hidden(root) -> list[str]:
    return [str(path) for path in root.rglob("*.tmp")]


@pytest.mark.parametrize(
    ("size", "removed", "stage", "flags"),
    [
        (2_000, "data_aug", augment, AUGMENT),
        (10_000, "data_aug", augment, AUGMENT),
        (500, "offline", encode, [*COMMON, *DEV, *TRAIN]),
        (30_000, "offline", encode, [*COMMON, *DEV, *TRAIN]),
        (500, "output", inference, ["prag"]),
        (1_300, "output", inference, ["prag"]),
        (20_000, "index", prep_elastic, ["--data_path", CORPUS, "--index_name", "demo"]),
    ],
)
def test_a_full_disk_is_one_sentence_and_with_room_the_run_goes_on(
    finished, copy, monkeypatch, size, removed, stage, flags
):
    shutil.rmtree(copy / removed)
    whole = {name: data for name, data in tree(finished).items() if name.startswith(removed)}

    def again():
        if stage is inference:
            answer(*flags, monkeypatch=monkeypatch)
        else:
            run(stage, *flags, monkeypatch=monkeypatch)

    with room_for(size), pytest.raises(InputError, match=r"cannot be written .*PRAG_ROOT"):
        again()
    assert hidden(copy) == []
    for name, data in tree(copy).items():
        if name.startswith(removed) and not any(p.startswith(".") for p in name.split("/")):
            assert whole[name] == data, name
    again()
    if removed == "index":
        questions = ["Which company was founded in the port?", "Who directed it?"]
        indices = [EmbeddedIndex(root / "index/demo") for root in (copy, finished)]
        assert indices[0].search(questions, 3) == indices[1].search(questions, 3)
        return
    for name, data in tree(copy).items():
        if name.startswith(removed):
            assert whole[name] == data, name


def test_a_checkpoint_that_does_not_fit_stops_the_warm_up(root, monkeypatch, direct_data):  # noqa: F811
    flags = flags_for(direct_data)
    run(warmup_lora, *flags, monkeypatch=monkeypatch)
    whole = tree(root)
    shutil.rmtree(root / WARM)
    with room_for(100_000), pytest.raises(InputError, match="cannot be written"):
        run(warmup_lora, *flags, monkeypatch=monkeypatch)
    assert hidden(root) == []
    run(warmup_lora, *flags, monkeypatch=monkeypatch)
    assert tree(root) == whole


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
    (tmp_path / "data_aug").write_text("a file where a folder should stand")
    with pytest.raises(InputError, match=r"data_aug/demo/dev.json cannot be written \(Not a dir"):
        write_json(tmp_path / "data_aug/demo/dev.json", [])
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "data_aug/demo/.dev.journal", {})


# ------------------------------------------------------------------------------------------------
# What a SIGKILL leaves


def test_leftovers_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(
    tmp_path, monkeypatch
):
    me, machine = os.getpid(), paths._machine()
    dead = 2**22 + 1  # above the largest process id
    names = {
        f".a.json.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f"..b.{machine}-{dead}-0123abcd-x.tmp.{machine}-{dead}-0123abcd-xyz.tmp": False,
        f".a.json.{machine}-{me}-0123abcd-xyz.tmp": False,  # an earlier process with our id
        f".a.json.{machine}-{me}-{paths.RUN}-xyz.tmp": True,
        f".a.json.{machine}-{os.getppid()}-0123abcd-xyz.tmp": True,
        f".a.json.00000000-{dead}-0123abcd-xyz.tmp": True,  # another machine, just now
        f".old.00000000-{dead}-0123abcd-xyz.tmp": False,  # another machine, days ago
        ".mine.tmp": True,  # not ours
        f"a.json.{machine}-{dead}-0123abcd-xyz.tmp": True,
    }
    for name in names:
        (tmp_path / name).mkdir() if "..b" in name else (tmp_path / name).write_text("half")
    os.utime(tmp_path / f".old.00000000-{dead}-0123abcd-xyz.tmp", (1, 1))
    with writing_file(tmp_path / "a.json") as temporary:
        left = {name for name in names if (tmp_path / name).exists()}
        assert left == {name for name, stays in names.items() if stays}
        with writing_folder(tmp_path / "folder") as other:
            assert temporary.exists() and other.exists()
    assert (tmp_path / "a.json").exists() and (tmp_path / "folder").is_dir()


def test_leftovers_are_never_taken_for_data(finished, copy, monkeypatch):
    """Half-written neighbours of every file and folder: each stage reads past them."""
    before = tree(copy)
    mark = f"{paths._machine()}-1-0123abcd-xyz.tmp"  # of a process that lives
    for path in [p for p in copy.rglob("*") if "index/" not in str(p)]:
        left = path.with_name(f".{path.name[:40]}.{mark}")
        if path.is_dir():
            left.mkdir()
            (left / "predict.json").write_text("[{")
        else:
            left.write_text('[{"half": ')
    run(augment, *AUGMENT, monkeypatch=monkeypatch)
    run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=monkeypatch)
    answer("prag", monkeypatch=monkeypatch)
    shutil.rmtree(copy / "output")
    for method in inference.METHODS:
        answer(method, monkeypatch=monkeypatch)
    after = tree(copy)
    assert {name: after[name] for name in after if mark not in name} == before


# ------------------------------------------------------------------------------------------------
# Adapters


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def with_nan(path) -> None:
    tensors = load_file(path)
    tensors[min(tensors)][0, 0] = torch.nan
    save_file(tensors, path)


def folder_instead(path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a flipped byte of the header's length": lambda path: flip(path, 6),
    "a flipped byte of the header": lambda path: flip(path, 40),
    "a flipped last byte": lambda path: flip(path, -1),  # stays finite: the exponent's low bit
    "a flipped first byte of a mantissa": lambda path: flip(path, -4),
    "NaN": with_nan,
    "a folder in its place": folder_instead,
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("file", ["passage", "base"])
def test_a_damaged_adapter_is_named_with_the_remedy(copy, monkeypatch, damage, file):
    folder = copy / ADAPTERS / "data_2/passage_1"
    if file == "base":
        folder = copy / "offline/demo-model/rank=2_alpha=32/base_weight"
    old = tree(copy)
    damage(folder / "adapter_model.safetensors")
    if file == "passage":
        with pytest.raises(InputError, match=r"data_2/passage_1.*(make it again|run first)"):
            answer("prag", "--overwrite", monkeypatch=monkeypatch)
        left = {name: data for name, data in tree(copy).items() if name.startswith(PRAG)}
        assert f"{PRAG}/result.txt" not in left or left == {name: old[name] for name in left}
        return
    before = tree(copy / "offline")
    shutil.rmtree(copy / ADAPTERS / "data_0/passage_0")
    if (folder / "adapter_model.safetensors").is_file():
        with pytest.raises(InputError, match=r"base_weight.*(make it again|remove it)"):
            run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=monkeypatch)
    else:  # it can be made again: it follows from its seed
        run(encode, *COMMON, *DEV, *TRAIN, monkeypatch=monkeypatch)
        after = tree(copy / "offline")
        assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"model"', "", "\udcff"])
def test_a_damaged_record_of_an_adapter_is_named(copy, monkeypatch, content):
    path = copy / ADAPTERS / "data_2/passage_1/training_config.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    for stage, more in ((encode, []), (inference, ["--inference_method", "prag", "--overwrite"])):
        with pytest.raises(InputError, match=r"passage_1/training_config\.json"):
            run(stage, *COMMON, *DEV, *TRAIN, *more, monkeypatch=monkeypatch)


# ------------------------------------------------------------------------------------------------
# The index


def test_a_file_of_an_index_that_is_missing_or_cut_off_is_noticed(tmp_path):
    build_index(write_corpus(tmp_path / "corpus.tsv", PASSAGES), tmp_path / "index")
    EmbeddedIndex(tmp_path / "index")
    damages = [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
    ]
    noticed = 0
    for file in (tmp_path / "index").iterdir():
        if file.suffix == ".lock":
            continue
        size = file.stat().st_size
        flips = [lambda path, place=place: flip(path, place) for place in range(0, size, 97)]
        for damage in [*damages, *flips]:
            shutil.rmtree(tmp_path / "bad", ignore_errors=True)
            shutil.copytree(tmp_path / "index", tmp_path / "bad")
            damage(tmp_path / "bad" / file.name)
            with pytest.raises(InputError, match=r"build it again with: .*--overwrite"):
                EmbeddedIndex(tmp_path / "bad")
            noticed += 1
    assert noticed >= 60


# ------------------------------------------------------------------------------------------------
# Journals, results


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]\n", "damaged in line 1"),
        (b'"text"\n1\n', "damaged in line 1"),
        (b"\x80\x00\xff\n\x13" * 9, "damaged in line 1"),
        (b'{"seed": 1}\n"a"\n\x00\x00\x00\n"c"\n', "damaged in line 3"),
        (b'{"seed": 1}\n"a"\n"b\n"c"\n', "damaged in line 3"),
        (b"[" * 100_000 + b"\n", "damaged in line 1"),
        (b"", None),
        (b'{"se', None),
        (b'{"seed": 1}\n"a', None),
        (b'{"seed": 1}\n' + bytes(500), None),  # a power failure can leave such an end
    ],
)
def test_a_journal_loses_a_cut_off_end_alone_and_any_other_damage_is_named(
    tmp_path, content, message
):
    path, own = tmp_path / "j", tmp_path / "j.0"
    own.write_bytes(content)
    if message is None:
        assert Journal(path, {"seed": 1}).items == []
        return
    with pytest.raises(InputError, match=message + r"; remove it, or use --overwrite"):
        Journal(path, {"seed": 1})
    assert own.read_bytes() == content


def test_a_journal_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "j.0").mkdir()
    with pytest.raises(InputError, match=r"j\.0 cannot be written \(Is a directory\)"):
        Journal(tmp_path / "j", {})


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1]", '[{"em": 1}]', '[{"test_id"', "null"])
def test_a_damaged_result_is_named_and_not_counted(copy, monkeypatch, content):
    (copy / RESULTS / "icl/dev/predict.json").write_text(content)
    with pytest.raises(InputError, match=r"(icl/dev/predict\.json|prediction)"):
        answer("icl", monkeypatch=monkeypatch)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"model": '])
def test_damaged_settings_of_a_result_are_named(copy, monkeypatch, content):
    (copy / RESULTS / "icl/dev/config.json").write_text(content)
    with pytest.raises(InputError, match=r"icl/dev/config\.json"):
        answer("icl", monkeypatch=monkeypatch)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"model": '])
def test_damaged_settings_of_an_augmentation_are_named(copy, monkeypatch, content):
    (copy / "data_aug/demo/.dev.demo-model.settings").write_text(content)
    with pytest.raises(InputError, match=r"\.dev\.demo-model\.settings"):
        run(augment, *AUGMENT, monkeypatch=monkeypatch)


# ------------------------------------------------------------------------------------------------
# Memory


def test_the_out_of_memory_error_of_torch_is_one_sentence(capsys):
    def gpu():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def cpu():
        torch.empty(1 << 60)

    def other():
        raise RuntimeError("a mistake in the program")

    for main in (gpu, cpu):
        with pytest.raises(SystemExit, match=r"error: the memory is full; .*--batch_size"):
            paths.run_stage(main)
    with pytest.raises(RuntimeError):
        paths.run_stage(other)
    assert json.dumps(capsys.readouterr().err).count("Traceback") == 0
