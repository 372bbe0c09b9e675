"""adapters.py: list, verify, export, pack. One check says which adapters can be used."""

import json
import shutil

import pytest
import torch
from adapter_runs import demo_bank, files_below, killed_at, save_tiny, tiny_bank
from conftest import edited, put
from safetensors.torch import load_file, save_file
from stage_runs import ADAPTERS, ALL, ENCODE, MODEL, answer, refused, run, tree

import adapters
import encode
from utils.layout import packed_file
from utils.lora.merges import scaled, total
from utils.store.exporting import exported_alpha, padded_rank
from utils.store.folders import adapter_files, load_adapter, save_adapter
from utils.store.links import link_adapter
from utils.store.packing import pack, unpack

WEIGHTS = "adapter_model.safetensors"
BASE = "offline/demo-model/rank=2_alpha=32/base_weight"


def command(name: str, *more: str) -> None:
    run(adapters, name, *([] if name == "list" else ENCODE), *more)


def test_list_counts_what_is_there(copy, capsys):
    shutil.copytree(copy / ADAPTERS, copy / ADAPTERS.replace("/dev", "/other"))
    shutil.copytree(copy / ADAPTERS / "data_0", copy / ADAPTERS / "data_0 (copy)")  # is no place
    command("list")
    dev, other = capsys.readouterr().out.splitlines()
    assert "/dev: 12 adapters, 12 different, " in dev and "/other: 12 adapters, 12 diff" in other
    shutil.rmtree(copy / "offline")
    command("list")
    assert "there are no adapters" in capsys.readouterr().out


def cut_off(folder) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-9])


def fill(folder, value: float) -> None:
    """Change an adapter and its hash, as a program with a mistake would."""
    tensors = {name: torch.full_like(t, value) for name, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    with edited(folder / "training_config.json") as record:
        record.pop("weights_hash", None)


DAMAGES = {  # by what is said about it; what is seen before the weights are read comes first
    "has r = 4": lambda f: put(f / "adapter_config.json", '{"peft_type": "LORA", "r": 4}'),
    "not valid JSON": lambda f: put(f / "training_config.json", "{"),
    "cannot be read": cut_off,
}


def test_damaged_adapters_are_named_refused_and_made_again(copy, capsys):
    whole = tree(copy / "offline")
    for did, damage in reversed([*enumerate(DAMAGES.values())]):  # the first one is named
        damage(copy / ADAPTERS / f"data_{did}/passage_0")
        refused(f"data_{did}/passage_0", answer, "prag", "--overwrite")
    shutil.rmtree(copy / ADAPTERS / "data_3/passage_1")
    refused(r"4 of 12 adapters cannot be used; run: python src/enc", command, "verify")
    said = capsys.readouterr().out
    assert all(words in said for words in DAMAGES)
    assert "missing: there is no adapter in" in said and "passage_1" in said
    run(encode, *ENCODE)
    said = capsys.readouterr().out
    assert "3 damaged adapters are made again: " in said and "4 adapters trained" in said
    assert tree(copy / "offline") == whole
    command("verify")
    assert "12 adapters checked, 0 of them" in capsys.readouterr().out


def test_adapters_that_are_not_finite_or_change_nothing_are_refused(copy, capsys):
    fill(copy / ADAPTERS / "data_0/passage_0", float("nan"))
    refused("1 of 12 adapters cannot be used", command, "verify")
    assert "holds NaN or infinity" in capsys.readouterr().out
    refused("NaN or infinity", answer, "prag", "--overwrite")
    for folder in (copy / ADAPTERS).glob("*/*"):
        fill(folder, 0.0)
    refused("change nothing", answer, "prag", "--overwrite")


def test_adapters_of_other_settings_or_texts_are_refused_by_all_and_kept(copy):
    before = files_below(copy / "offline")
    for more in (["--seed", "3"], ["--max_length", "50"], ["--per_device_train_batch_size", "2"]):
        words = r"made with|flags they were made with"
        refused(words, command, "verify", *more)
        refused(words, run, encode, *ENCODE, *more)
        refused(words, answer, "prag", *more, "--overwrite")
    with edited(copy / "data_aug/demo/dev.json") as records:
        records[0]["augment"][0]["passage"] += " More."
    refused(r"data_0/passage_0 was made with data = ", run, encode, *ENCODE)
    assert files_below(copy / "offline") == before


def test_without_a_base_adapter_it_is_made_again_and_must_be_the_first_one(copy):
    whole = tree(copy / "offline")
    shutil.rmtree(copy / BASE)
    answer("prag", "--overwrite")  # the adapters hold all it needs
    shutil.rmtree(copy / ADAPTERS / "data_0")
    run(encode, *ENCODE)
    assert tree(copy / "offline") == whole
    shutil.rmtree(copy / BASE)
    shutil.rmtree(copy / ADAPTERS / "data_0")
    for path in (copy / ADAPTERS).glob("*/*/training_config.json"):
        with edited(path) as record:
            record["base"] = "f" * 16
    refused("it was replaced; train all again with --overwrite", run, encode, *ENCODE)


def test_a_damaged_or_other_base_adapter_is_refused(copy):
    record = json.loads((copy / BASE / "training_config.json").read_text())
    made_with = {name: record[name] for name in ("seed", "initialisation")}
    calls = ((answer, "prag", "--overwrite"), (run, encode, *ENCODE), (command, "verify"))
    other = demo_bank().new_base_adapter(7)
    for damage in (lambda _: None, cut_off):
        save_adapter(other, copy / BASE, 32, MODEL, made_with)
        damage(copy / BASE)
        for call in calls:
            refused(r"delete .*folder|delete .*base_weight", *call)
    save_adapter(other, copy / BASE, 32, MODEL, made_with)
    (copy / BASE / "training_config.json").unlink()
    refused("has no training_config.json .* delete", run, encode, *ENCODE, "--overwrite")


@pytest.fixture
def six(tmp_path):
    """Six adapters of three questions, four of them different: two folders are hard links."""
    bank, dev = tiny_bank(), tmp_path / "dev"
    for number, place in enumerate(("0/passage_0", "0/passage_1", "1/passage_0", "10/passage_0")):
        save_tiny(bank, dev / f"data_{place}", number)
    assert link_adapter(dev / "data_0/passage_0", dev / "data_1/passage_1") > 0
    assert link_adapter(dev / "data_1/passage_0", dev / "data_10/passage_1") > 0
    return dev


def linked_groups(root) -> set[frozenset[str]]:
    """The weights files that are one on the disk, as sets of their names."""
    groups: dict[int, set[str]] = {}
    for path in root.rglob("*.safetensors"):
        groups.setdefault(path.stat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(group) for group in groups.values()}


def test_unpacking_gives_the_same_bytes_and_links_but_for_a_folder_that_was_made_since(six):
    before, links = files_below(six), linked_groups(six)
    assert pack(six) == 6 and packed_file(six).is_file() and not any(six.iterdir())
    assert unpack(six) == 6 and not packed_file(six).exists()
    assert files_below(six) == before and linked_groups(six) == links
    pack(six)
    save_tiny(tiny_bank(), six / "data_0/passage_1", 77)
    newer = files_below(six)
    pack(six)
    unpack(six)
    own = {f"data_0/passage_1/{name}" for name in adapter_files(six / "data_0/passage_1")}
    assert files_below(six) == before | {name: newer[name] for name in own}


def visible(root) -> dict[str, bytes]:
    """What a kill left behind under hidden names is removed by the next run that writes there."""
    return {name: data for name, data in files_below(root).items() if "/." not in f"/{name}"}


@pytest.mark.parametrize("move", [pack, unpack])
def test_killed_before_any_change_of_the_disk_nothing_is_lost(six, tmp_path, move):
    before, step = files_below(six), 0
    if move is unpack:
        pack(six)
    start = tmp_path / "start"
    shutil.copytree(six.parent, start, ignore=lambda *_: ["start"])
    while killed_at(step := step + 1, lambda: move(six)):
        unpack(six)
        assert visible(six) == before
        shutil.rmtree(six)
        shutil.copytree(start, six.parent, dirs_exist_ok=True)
    assert step > 6
    unpack(six)
    assert visible(six) == before


def test_what_is_damaged_is_not_packed_and_a_damaged_tar_stays(six):
    cut_off(six / "data_1/passage_0")
    refused(r"data_1/passage_0.* cannot be read", pack, six)
    assert len(list(six.glob("*/*"))) == 6
    shutil.rmtree(six / "data_1")
    shutil.rmtree(six / "data_10")
    pack(six)
    packed_file(six).write_bytes(packed_file(six).read_bytes()[:2000])
    refused(r"dev.tar cannot be unpacked .* put a copy in its place", unpack, six)
    assert packed_file(six).exists()


def test_packed_or_absent_adapters_are_named_with_the_command_that_makes_them(copy):
    words = r"no adapters in .*run first: python src/encode\.py"
    refused(words, command, "pack", "--learning_rate", "1")
    refused(words, command, "unpack", "--learning_rate", "1")
    command("pack")
    refused(r"dev.tar holds packed ones: python src/adapters.py unp", answer, "prag", "--overwrite")
    command("unpack")
    answer("prag", "--overwrite")
    shutil.rmtree(copy / ADAPTERS / "data_0")
    (copy / ADAPTERS / "packed").mkdir()  # as commit 4200079 left it
    refused("packed was made by an older version: unpack it with", answer, "prag", "--overwrite")


def test_an_exported_adapter_is_the_merged_one_filled_up_with_zeros(copy, capsys):
    bank, places = demo_bank(), [copy / ADAPTERS / f"data_1/passage_{pid}" for pid in range(2)]
    own = [load_adapter(place, bank.shapes(2)) for place in places]
    flags = ["--question_id", "1", "--merge_topk", "2", "--merge_scale", "0.5"]
    folder = copy / "exported"
    more = ["--output", str(folder), "--pad_rank", "16", "--save_dtype", "bfloat16"]
    command("export", *flags, *more)
    assert "rank 4, filled up to 16, lora_alpha 256" in capsys.readouterr().out
    loaded = load_adapter(folder, bank.shapes(16))
    for name, (A, B) in scaled(total(own, [], None), 0.5).items():
        assert torch.equal(loaded[name][0][:4], A.bfloat16().float())
        assert torch.equal(loaded[name][1][:, :4], B.bfloat16().float())
        assert not loaded[name][0][4:].any() and not loaded[name][1][:, 4:].any()
    record = json.loads((folder / "training_config.json").read_text())
    assert record["merge_topk"] == 2 and record["merged_rank"] == 4
    refused("exists already; give another folder", command, "export", *flags, *more)


def test_an_export_that_inference_would_refuse_is_refused(copy):
    huge = "0 --merge_scale 1e38 --save_dtype float16"
    for message, flags in {
        "--question_id 4: .* 4 questions, from 0": "4",
        "--question_id 1: .* 1 questions": "1 --sample 1",
        "rank 6, above 4; give a larger --pad_rank": "0 --pad_rank 4",
        "was made with seed": "0 --seed 5",
        r"adapter for .*new has numbers that are not finite in torch\.float16; use --save": huge,
        r"no adapter in .*encode\.py": "0 --lora_rank 4",
    }.items():
        words = ["--output", str(copy / "new"), "--question_id", *flags.split()]
        refused(message, command, "export", *words)
        assert not (copy / "new").exists()
    shutil.copy(copy / "data_aug/demo/dev.json", copy / "data_aug/demo/test.json")
    flags = [*ALL, "--question_id", "0", "--output", "new"]
    refused("choose one --data_type of dev, test", run, adapters, "export", *flags)


@pytest.mark.parametrize("alpha", [32, 16, 1, 0.1, 7.3, 1000])
@pytest.mark.parametrize("rank", [1, 2, 3, 7, 64])
def test_pefts_scaling_of_an_exported_adapter_is_the_trained_one(alpha, rank):
    for exported in (8, 16, 32, 64, 128, 256, 512):
        assert exported_alpha(alpha, rank, exported) / exported == alpha / rank
    other = exported_alpha(alpha, rank, 320) / 320
    assert abs(other - alpha / rank) <= 2.3e-16 * alpha / rank


def test_an_exported_rank_is_one_of_servers():
    assert [padded_rank(rank, None) for rank in (1, 6, 8, 9, 300, 512)] == [8, 8, 8, 16, 320, 512]
    assert padded_rank(6, 0) == 6 and padded_rank(6, 7) == 7
    refused("rank 513, above 512", padded_rank, 513, None)
