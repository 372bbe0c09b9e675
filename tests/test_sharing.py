"""Each passage once on the disk: what is trained, linked, copied, and left alone."""

import errno
import json
import os
import shutil

import pytest
import torch
from adapter_runs import files_below, in_processes, save_tiny, tiny_bank
from conftest import edited
from safetensors.torch import load_file
from stage_runs import ADAPTERS, ALL, RESULTS, answer, refused, run, tree

import encode
from utils.store.base import open_base_adapter
from utils.store.folders import is_stored, read_training, save_adapter
from utils.store.links import link_adapter

TOTAL = ADAPTERS.replace("/dev", "/total")
WEIGHTS = "adapter_model.safetensors"


def inodes(root) -> set[int]:
    return {path.stat().st_ino for path in root.rglob(f"passage_*/{WEIGHTS}")}


@pytest.fixture
def with_total(copy):
    """A second data type: the questions in reverse, one twice, its passages in another order."""
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    entries = [{**e, "pid": pid} for pid, e in enumerate(records[0]["augment"][::-1])]
    again = {**records[0], "test_id": 4, "passages": records[0]["passages"][::-1]}
    total = [*records[::-1], {**again, "augment": entries}]
    (copy / "data_aug/demo/total.json").write_text(json.dumps(total))
    return copy


def distinct_passages(root) -> int:
    records = json.loads((root / "data_aug/demo/dev.json").read_text())
    return len({entry["passage"] for record in records for entry in record["augment"]})


def test_total_and_types_together_train_each_passage_once(with_total, capsys):
    shutil.rmtree(with_total / "offline")
    run(encode, *ALL)
    distinct = distinct_passages(with_total)
    assert distinct < 15
    said = capsys.readouterr().out
    assert f"27 passages, {distinct} with different training data" in said
    assert f"{distinct} adapters trained, {27 - distinct} linked to an equal one (" in said
    assert len(list((with_total / "offline").rglob(f"passage_*/{WEIGHTS}"))) == 27
    assert len(inodes(with_total / "offline")) == distinct
    first = with_total / ADAPTERS / "data_0/passage_2"
    for other in ("data_3/passage_2", "data_4/passage_0"):
        for name in ("adapter_config.json", WEIGHTS, "training_config.json"):
            assert (first / name).samefile(with_total / TOTAL / other / name)


def test_total_after_the_types_is_linked_and_overwritten_alone(with_total, monkeypatch, capsys):
    before, kept = files_below(with_total / ADAPTERS), inodes(with_total / "offline")
    with monkeypatch.context() as patch:
        patch.setattr("utils.experiment.load_model", None)  # needs no model
        run(encode, *ALL)
    assert "0 adapters trained, 15 linked to an equal one (" in capsys.readouterr().out
    assert len(list((with_total / TOTAL).glob("*/*"))) == 15
    assert inodes(with_total / "offline") == kept
    answer("prag")
    answer("prag", "--data_type", "total")
    results = [with_total / RESULTS / f"prag/{name}/predict.json" for name in ("dev", "total")]
    dev, total = (json.loads(result.read_text()) for result in results)
    assert [row["text"] for row in total][:4] == [row["text"] for row in dev][::-1]
    run(encode, *ALL, "--data_type", "total", "--overwrite", "--save_dtype", "bfloat16")
    assert files_below(with_total / ADAPTERS) == before
    assert inodes(with_total / ADAPTERS) == kept
    assert not kept & inodes(with_total / TOTAL)
    assert len(inodes(with_total / TOTAL)) == distinct_passages(with_total)
    # the smaller dtype has the float32 adapter rounded
    files = [with_total / ADAPTERS / "data_2/passage_1", with_total / TOTAL / "data_1/passage_1"]
    exact, rounded = (load_file(file / WEIGHTS) for file in files)
    assert all(torch.equal(exact[key].to(torch.bfloat16), rounded[key]) for key in exact)
    sizes = [(file / WEIGHTS).stat().st_size for file in files]
    assert exact.keys() == rounded.keys() and sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_where_links_are_impossible_there_are_copies(with_total, monkeypatch, capsys, code):
    def refuse(source, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr("utils.experiment.load_model", None)
    run(encode, *ALL)
    said = capsys.readouterr().out
    assert "0 linked to an equal one (0.0 MB saved), 15 copied, as links are" in said
    dev = tree(with_total / ADAPTERS)
    for did in range(4):
        for pid in range(3):
            here, there = f"data_{did}/passage_{pid}/{WEIGHTS}", f"data_{3 - did}/passage_{pid}"
            assert (with_total / TOTAL / there / WEIGHTS).read_bytes() == dev[here]


@pytest.mark.parametrize("flags", [[], ["--save_dtype", "float16"]])
def test_what_is_not_equal_or_not_sound_is_trained(with_total, capsys, flags):
    records = sorted((with_total / ADAPTERS).glob("*/*/training_config.json"))
    for path in records if not flags else ():
        with edited(path) as record:
            record["base"] = "another"
    for path in records[::2] if not flags else ():
        path.write_text("{")
    run(encode, *ALL, "--data_type", "total", *flags)
    distinct = distinct_passages(with_total)
    assert f"{distinct} adapters trained, {15 - distinct} linked" in capsys.readouterr().out


def test_processes_that_make_the_base_adapter_at_once_use_the_same_one(tmp_path):
    bank = tiny_bank()
    for attempt in range(4):
        folder = tmp_path / str(attempt) / "base_weight"

        def work(number, folder=folder):
            base = open_base_adapter(bank, folder, "tiny", seed=3)
            expected = bank.new_base_adapter(3)
            assert all((base[name][0] == A).all() for name, (A, _) in expected.items())

        in_processes(4, work)
        assert is_stored(folder)
        assert [p.name for p in folder.parent.iterdir()] == ["base_weight"]


@pytest.mark.parametrize("replace", [False, True])
def test_processes_that_write_the_same_folder_leave_a_whole_one(tmp_path, replace):
    bank = tiny_bank()
    sources = [tmp_path / f"data_{number}/passage_0" for number in range(3)]
    for number, source in enumerate(sources):
        save_tiny(bank, source, number)
    folder = tmp_path / "data_9/passage_0"

    def work(number):
        for _ in range(40):
            if number == 2:
                save_tiny(bank, folder, number)
            else:
                link_adapter(sources[number], folder, replace)

    in_processes(3, work)
    seed = int(read_training(folder)["data"])
    assert (folder / WEIGHTS).read_bytes() == (sources[seed] / WEIGHTS).read_bytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["passage_0"]


def test_the_first_folder_stays_where_it_is_whole_and_a_half_one_is_replaced(tmp_path):
    bank = tiny_bank()
    folder = tmp_path / "data_0/passage_0"
    save_tiny(bank, folder, 1)
    save_adapter(bank.new_base_adapter(0), folder, 32, "tiny", {"data": "2"}, replace=False)
    assert read_training(folder)["data"] == "1"
    (folder / WEIGHTS).unlink()
    save_adapter(bank.new_base_adapter(0), folder, 32, "tiny", {"data": "2"}, replace=False)
    assert read_training(folder)["data"] == "2"
    refused("cannot be written", save_tiny, bank, folder / WEIGHTS, 3)
    assert read_training(folder)["data"] == "2"
