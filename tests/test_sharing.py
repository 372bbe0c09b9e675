"""Each passage once on the disk: what is trained, linked, copied, and left alone."""

import errno
import json
import os
import shutil

import pytest
from adapter_runs import files_below, in_processes, save_tiny, tiny_bank
from stage_runs import ADAPTERS, COMMON, DEV, RESULTS, TRAIN, answer, run, tree

import encode
from utils import paths
from utils.files import writing_folder
from utils.running import InputError
from utils.store.folders import (
    open_base_adapter,
    read_adapter,
    read_training,
    save_adapter,
    stands_unpacked,
)
from utils.store.links import Shared
from utils.store.packing import pack

TOTAL = ADAPTERS.replace("/dev", "/total")
ALL = [*COMMON, "--dataset", "demo", *TRAIN]
WEIGHTS = "adapter_model.safetensors"


def inodes(root) -> set[int]:
    return {path.stat().st_ino for path in root.rglob(f"passage_*/{WEIGHTS}")}


@pytest.fixture
def with_total(copy):
    """The finished root with a second data type: the questions in reverse, one of them twice.

    The passages of the second one stand in another order.
    """
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    entries = [{**e, "pid": pid} for pid, e in enumerate(records[0]["augment"][::-1])]
    again = {**records[0], "test_id": 4, "passages": records[0]["passages"][::-1]}
    total = [*records[::-1], {**again, "augment": entries}]
    (copy / "data_aug/demo/total.json").write_text(json.dumps(total))
    return copy


def distinct_passages(root) -> int:
    records = json.loads((root / "data_aug/demo/dev.json").read_text())
    return len({entry["passage"] for record in records for entry in record["augment"]})


def refuse_training(monkeypatch) -> None:
    def unwanted(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(encode, "model_of", unwanted)


def test_total_and_types_together_train_and_store_each_passage_once(
    with_total, monkeypatch, capsys
):
    """Acceptance 3 of issue 8."""
    shutil.rmtree(with_total / "offline")
    run(encode, *ALL, monkeypatch=monkeypatch)
    distinct = distinct_passages(with_total)
    assert distinct < 15
    said = capsys.readouterr().out
    assert f"{distinct} adapters trained, {27 - distinct} linked to an equal one (" in said
    assert len(list((with_total / "offline").rglob(f"passage_*/{WEIGHTS}"))) == 27
    assert len(inodes(with_total / "offline")) == distinct
    first = with_total / ADAPTERS / "data_0/passage_2"
    for other in ("data_3/passage_2", "data_4/passage_0"):
        for name in ("adapter_config.json", WEIGHTS, "training_config.json"):
            assert (first / name).samefile(with_total / TOTAL / other / name)


def test_total_after_the_types_is_linked_without_a_model(with_total, monkeypatch, capsys):
    refuse_training(monkeypatch)
    before = inodes(with_total / "offline")
    run(encode, *ALL, monkeypatch=monkeypatch)
    assert "0 adapters trained, 15 linked to an equal one (" in capsys.readouterr().out
    assert len(list((with_total / TOTAL).glob("*/*"))) == 15
    assert inodes(with_total / "offline") == before
    answer("prag", monkeypatch=monkeypatch)
    flags = [*ALL, "--data_type", "total", "--inference_method", "prag", "--max_new_tokens", "12"]
    import inference

    run(inference, *flags, monkeypatch=monkeypatch)
    dev, total = (
        json.loads((with_total / RESULTS / f"prag/{name}/predict.json").read_text())
        for name in ("dev", "total")
    )
    assert [row["text"] for row in total][:4] == [row["text"] for row in dev][::-1]


def test_total_is_filled_from_packed_types(with_total, monkeypatch, capsys):
    refuse_training(monkeypatch)
    pack(with_total / ADAPTERS)
    run(encode, *ALL, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "27 passages" in said and "12 adapters stand already" in said
    # the first folder of each is a copy out of the pack
    distinct = distinct_passages(with_total)
    assert f"0 adapters trained, {15 - distinct} linked" in said and f"{distinct} copied" in said
    assert len(inodes(with_total / TOTAL)) == distinct


def test_a_killed_linking_goes_on(with_total, monkeypatch):
    refuse_training(monkeypatch)
    run(encode, *ALL, monkeypatch=monkeypatch)
    whole = files_below(with_total / "offline")
    shutil.rmtree(with_total / TOTAL)
    calls = 0
    original = os.link

    def stop(*arguments):
        nonlocal calls
        calls += 1
        if calls == 8:  # the second file of the third folder
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", stop)
        with pytest.raises(KeyboardInterrupt):
            run(encode, *ALL, monkeypatch=patch)
    assert len(list((with_total / TOTAL).glob("*/*"))) == 2
    assert [p for p in with_total.rglob("*.tmp")] == []
    run(encode, *ALL, monkeypatch=monkeypatch)
    assert files_below(with_total / "offline") == whole


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOTSUP])
def test_where_links_are_impossible_there_are_copies(with_total, monkeypatch, capsys, code):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    refuse_training(monkeypatch)
    run(encode, *ALL, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "0 linked to an equal one (0.0 MB saved), 15 copied, where links are" in said
    dev = {name: data for name, data in tree(with_total / ADAPTERS).items()}
    for did in range(4):
        for pid in range(3):
            here, there = f"data_{did}/passage_{pid}/{WEIGHTS}", f"data_{3 - did}/passage_{pid}"
            assert (with_total / TOTAL / there / WEIGHTS).read_bytes() == dev[here]


def test_a_full_disk_while_linking_is_one_sentence(with_total, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        run(encode, *ALL, monkeypatch=monkeypatch)
    assert [p for p in with_total.rglob("*.tmp")] == []


def test_overwriting_changes_no_folder_that_shared_the_files(with_total, monkeypatch):
    run(encode, *ALL, monkeypatch=monkeypatch)
    before = files_below(with_total / ADAPTERS)
    kept = inodes(with_total / ADAPTERS)
    flags = ["--data_type", "total", "--overwrite", "--save_dtype", "bfloat16"]
    run(encode, *ALL, *flags, monkeypatch=monkeypatch)
    assert files_below(with_total / ADAPTERS) == before
    assert inodes(with_total / ADAPTERS) == kept
    assert not kept & inodes(with_total / TOTAL)
    assert len(inodes(with_total / TOTAL)) == distinct_passages(with_total)


@pytest.mark.parametrize("difference", ["save_dtype", "base", "damage", "record"])
def test_what_is_not_equal_or_not_sound_is_trained(with_total, monkeypatch, capsys, difference):
    flags = ["--data_type", "total"]
    folders = [*(with_total / ADAPTERS).glob("*/*")]
    if difference == "save_dtype":
        flags += ["--save_dtype", "float16"]
    for folder in folders if difference != "save_dtype" else ():
        path = folder / "training_config.json"
        if difference == "base":
            path.write_text(json.dumps({**json.loads(path.read_text()), "base": "another"}))
        elif difference == "record":
            path.write_text("{")
        else:
            data = bytearray((folder / WEIGHTS).read_bytes())
            data[-1] ^= 1
            (folder / WEIGHTS).write_bytes(data)
    run(encode, *ALL, *flags, monkeypatch=monkeypatch)
    distinct = distinct_passages(with_total)
    if difference == "damage":
        # hard links are damaged once or twice: each flip of one inode toggles the same bit
        assert "adapters trained" in capsys.readouterr().out
    else:
        assert f"{distinct} adapters trained, {15 - distinct} linked" in capsys.readouterr().out
    for folder in (with_total / TOTAL).glob("*/*"):
        read_adapter(folder)


def test_the_bytes_of_a_smaller_dtype_are_those_of_the_float32_adapter_rounded(
    finished, copy, monkeypatch
):
    import torch
    from safetensors.torch import load_file

    shutil.rmtree(copy / "offline")
    run(encode, *COMMON, *DEV, *TRAIN, "--save_dtype", "bfloat16", monkeypatch=monkeypatch)
    name = "data_2/passage_1/" + WEIGHTS
    exact, rounded = load_file(finished / ADAPTERS / name), load_file(copy / ADAPTERS / name)
    for key, tensor in exact.items():
        assert torch.equal(tensor.to(torch.bfloat16), rounded[key])
    size = (copy / ADAPTERS / name).stat().st_size
    assert size < 0.55 * (finished / ADAPTERS / name).stat().st_size


# ------------------------------------------------------------------------------------------------
# Several processes at once


def test_processes_that_make_the_base_adapter_at_once_use_the_same_one(tmp_path):
    bank = tiny_bank()
    for attempt in range(8):
        folder = tmp_path / str(attempt) / "base_weight"

        def work(number, folder=folder):
            base = open_base_adapter(bank, folder, "tiny", seed=3)
            expected = bank.new_base_adapter(3)
            assert all((base[name][0] == A).all() for name, (A, _) in expected.items())

        in_processes(4, work)
        assert stands_unpacked(folder)
        assert [p.name for p in folder.parent.iterdir()] == ["base_weight"]


def test_a_base_adapter_that_another_process_has_just_made_stays(tmp_path, monkeypatch):
    bank = tiny_bank()
    folder = tmp_path / "base_weight"
    new = bank.new_base_adapter

    def slow(seed):
        monkeypatch.undo()
        open_base_adapter(bank, folder, "tiny", seed)  # the other one
        (folder / "first").write_text("the first one's")
        return new(seed)

    monkeypatch.setattr(bank, "new_base_adapter", slow)
    open_base_adapter(bank, folder, "tiny", seed=3)
    assert (folder / "first").exists()
    shutil.rmtree(folder)

    def other_seed(seed):
        monkeypatch.undo()
        open_base_adapter(bank, folder, "tiny", seed + 1)
        return new(seed)

    monkeypatch.setattr(bank, "new_base_adapter", other_seed)
    with pytest.raises(InputError, match="use --seed 4"):
        open_base_adapter(bank, folder, "tiny", seed=3)


@pytest.mark.parametrize("replace", [False, True])
def test_processes_that_write_the_same_folder_leave_a_whole_one(tmp_path, replace):
    bank = tiny_bank()
    sources = [tmp_path / f"data_{number}/passage_0" for number in range(3)]
    for number, source in enumerate(sources):
        save_tiny(bank, source, number)
    folder = tmp_path / "data_9/passage_0"

    def work(number):
        shared = Shared()
        for _ in range(40):
            if number == 2:
                save_tiny(bank, folder, number)
            else:
                shared.give(sources[number], folder, replace)

    in_processes(3, work)
    seed = int(read_training(folder)["data"])
    assert read_adapter(folder)[WEIGHTS] == read_adapter(sources[seed])[WEIGHTS]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["passage_0"]


def test_the_first_folder_stays_where_it_is_whole_and_a_half_one_is_replaced(tmp_path):
    bank = tiny_bank()
    folder = tmp_path / "data_0/passage_0"
    save_tiny(bank, folder, 1)
    save_adapter(bank.new_base_adapter(0), folder, 2, 32, "tiny", {"data": "2"}, replace=False)
    assert read_training(folder)["data"] == "1"
    (folder / WEIGHTS).unlink()
    save_adapter(bank.new_base_adapter(0), folder, 2, 32, "tiny", {"data": "2"}, replace=False)
    assert read_training(folder)["data"] == "2"
    with pytest.raises(InputError, match="cannot be written"), writing_folder(folder / WEIGHTS):
        pass
    assert read_training(folder)["data"] == "2"


def test_a_link_to_a_file_of_another_user_keeps_its_rights(tmp_path, monkeypatch):
    """Only the owner may change them, and they are the usual ones already."""
    source = tmp_path / "file"
    source.write_text("x")
    source.chmod(0o644)

    def refuse(path, mode):
        raise AssertionError("changed the rights of a file")

    with writing_folder(tmp_path / "folder") as temporary:
        os.link(source, temporary / "file")
        monkeypatch.setattr(paths.Path, "chmod", refuse)
    assert (tmp_path / "folder/file").samefile(source)
