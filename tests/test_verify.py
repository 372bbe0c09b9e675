"""adapters.py verify against what should stand; the base adapter in all stages."""

import json
import shutil

import pytest
from adapter_runs import files_below
from stage_runs import ADAPTERS, COMMON, DEV, TRAIN, answer, run, tree

import adapters
import encode
from utils.lora.bank import LoraBank
from utils.models import load_skeleton
from utils.running import InputError
from utils.store.folders import save_adapter, stored_adapters

FLAGS = [*COMMON, *DEV, *TRAIN]
WEIGHTS = "adapter_model.safetensors"
BASE = "offline/demo-model/rank=2_alpha=32/base_weight"


def verify(*more: str, monkeypatch) -> None:
    run(adapters, "verify", *FLAGS, *more, monkeypatch=monkeypatch)


def no_weights(monkeypatch) -> None:
    """Let no model be loaded from here on."""

    def unwanted(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(encode, "model_of", unwanted)


# ------------------------------------------------------------------------------------------------
# A pack that cannot be opened


@pytest.mark.parametrize("damage", ["cut off", "missing", "a byte of what folders hold too"])
def test_a_bad_pack_beside_folders_is_mended(copy, monkeypatch, capsys, damage):
    whole = tree(copy / "offline")
    place = copy / ADAPTERS
    for did in (0, 1):
        shutil.copytree(place / f"data_{did}", copy / f"kept_{did}")
    run(adapters, "pack", *FLAGS, monkeypatch=monkeypatch)
    for did in (0, 1):
        (copy / f"kept_{did}").rename(place / f"data_{did}")
    [path] = (place / "packed").glob("*.safetensors")
    data = path.read_bytes()
    if damage == "cut off":
        path.write_bytes(data[:1000])
    elif damage == "missing":
        path.unlink()
    else:  # all packed ones but the last: those of data_0, data_1 and data_2
        size = (place / "data_0/passage_0" / WEIGHTS).stat().st_size
        changed = bytearray(data)
        for number in range(2, 13):
            changed[-number * size + 2000] ^= 1
        path.write_bytes(changed)
    with pytest.raises(InputError, match=r"are bad; .*--remove_bad"):
        verify(monkeypatch=monkeypatch)
    verify("--remove_bad", monkeypatch=monkeypatch)
    left = {str(f.relative_to(place)) for f in stored_adapters(place)}
    assert {f"data_{did}/passage_{pid}" for did in (0, 1) for pid in range(3)} <= left
    if damage in ("cut off", "missing"):
        assert not (place / "packed").exists()
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    verify(monkeypatch=monkeypatch)
    answer("prag", "--overwrite", monkeypatch=monkeypatch)
    run(adapters, "unpack", *FLAGS, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole


# ------------------------------------------------------------------------------------------------
# What should stand


def file_instead(folder) -> None:
    shutil.rmtree(folder)
    folder.write_text("my notes")


def link_instead(folder, target: str) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(target)


def copy_instead(folder) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[1] / "data_1/passage_0", folder)


# what is done to data_2; lines about it, bad ones, missing ones, whether a file of one's own stays
PLACES = {
    "removed": (lambda f: shutil.rmtree(f), 3, 0, 3, False),
    "a passage removed": (lambda f: shutil.rmtree(f / "passage_1"), 1, 0, 1, False),
    "a file": (file_instead, 1, 0, 3, True),
    "a file for a passage": (lambda f: file_instead(f / "passage_1"), 1, 0, 1, True),
    "a link to nothing": (lambda f: link_instead(f / "passage_1", "no"), 1, 0, 1, True),
    "a link": (lambda f: link_instead(f / "passage_1", "../data_1/passage_0"), 1, 1, 0, False),
    "a link above": (lambda f: link_instead(f, "data_1"), 3, 3, 0, False),
    "a copy": (lambda f: copy_instead(f / "passage_1"), 1, 1, 0, False),
}


@pytest.mark.parametrize("place", PLACES)
def test_verify_names_what_is_missing_or_not_of_its_place(copy, monkeypatch, capsys, place):
    whole = tree(copy / "offline")
    change, lines, bad, missing, stays = PLACES[place]
    folder = copy / ADAPTERS / "data_2"
    change(folder)
    with pytest.raises(InputError, match=rf"{max(bad, missing)} adapters (or packs )?are "):
        verify(monkeypatch=monkeypatch)
    *told, last = capsys.readouterr().out.splitlines()
    assert len([line for line in told if "/data_2" in line]) == len(told) == lines
    assert last.endswith(f"{bad} bad" + (f", {missing} missing" if missing else ""))
    if stays:
        with pytest.raises(InputError, match="1 things stay"):
            verify("--remove_bad", monkeypatch=monkeypatch)
        assert "move it away" in capsys.readouterr().out
        [own] = [p for p in (folder, folder / "passage_1") if p.is_symlink() or p.is_file()]
        own.unlink()
    else:
        verify("--remove_bad", monkeypatch=monkeypatch)
        assert "next: python src/encode.py" in capsys.readouterr().out
    assert (copy / ADAPTERS / "data_1/passage_0" / WEIGHTS).exists()
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole
    capsys.readouterr()
    verify(monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "12 adapters verified, 0 bad\n"


def test_verify_compares_with_the_sample_of_the_flags(copy, monkeypatch, capsys):
    shutil.rmtree(copy / ADAPTERS / "data_3")
    verify("--sample", "3", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == "9 adapters verified, 0 bad\n"
    shutil.copytree(copy / ADAPTERS / "data_1", copy / ADAPTERS / "data_3")  # beyond the sample
    shutil.copytree(copy / ADAPTERS / "data_1", copy / ADAPTERS / "data_9")  # beyond all
    with pytest.raises(InputError, match="3 adapters or packs are bad"):
        verify("--sample", "3", monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "3 adapters in" in out and "belong to no passage of the augmented data" in out
    verify("--sample", "3", "--remove_bad", monkeypatch=monkeypatch)
    assert not list((copy / ADAPTERS / "data_3").glob("passage_*"))
    assert len(list((copy / ADAPTERS / "data_9").glob("passage_*"))) == 3


def test_a_data_type_without_any_adapters_is_named(copy, monkeypatch, capsys):
    records = json.loads((copy / "data_aug/demo/dev.json").read_text())
    (copy / "data_aug/demo/test.json").write_text(json.dumps(records[:2]))
    flags = [*COMMON, "--dataset", "demo", *TRAIN]
    with pytest.raises(InputError, match=r"^6 adapters are missing; run: .*encode\.py"):
        run(adapters, "verify", *flags, monkeypatch=monkeypatch)
    out = capsys.readouterr().out
    assert "/test has none of its 6 adapters" in out and "12 adapters verified, 0 bad" in out
    verify(monkeypatch=monkeypatch)  # of dev alone


def test_without_the_augmented_data_verify_says_what_it_could_not_compare(
    copy, monkeypatch, capsys
):
    shutil.rmtree(copy / "data_aug")
    verify(monkeypatch=monkeypatch)
    first, last = capsys.readouterr().out.splitlines()
    assert "only what stands was checked" in first and "augment.py" in first
    assert last == "12 adapters verified, 0 bad"


@pytest.mark.parametrize("change", ["flags", "data", "start"])
def test_verify_deletes_nothing_where_a_wrong_flag_makes_all_look_foreign(
    copy, monkeypatch, capsys, change
):
    flags = ["--max_length", "90"] if change == "flags" else []
    if change == "data":
        path = copy / "data_aug/demo/dev.json"
        text = path.read_text()
        assert "passage" in text
        records = json.loads(text)
        for record in records:
            for entry in record["augment"]:
                entry["passage"] += " More."
        path.write_text(json.dumps(records))
    elif change == "start":
        start = copy / "offline/demo-model/rank=2_alpha=32/warmup_direct"
        flags = ["--init_adapter", "warmup"]
        shutil.copytree(copy / BASE, start)
        run(encode, *FLAGS, *flags, monkeypatch=monkeypatch)
        shutil.rmtree(start)
        shutil.copytree(copy / ADAPTERS / "data_0/passage_0", start)
    before = files_below(copy)
    with pytest.raises(InputError, match="12 things stay"):
        verify(*flags, "--remove_bad", monkeypatch=monkeypatch)
    assert "encode.py with --overwrite" in capsys.readouterr().out
    assert files_below(copy) == before


# ------------------------------------------------------------------------------------------------
# The base adapter


def other_base(copy) -> None:
    """A sound base adapter of another seed, whose record says that it is the right one."""
    bank = LoraBank(load_skeleton(COMMON[1]), 2, 32)
    made_with = json.loads((copy / BASE / "training_config.json").read_text())
    made_with = {name: made_with[name] for name in ("seed", "initialisation")}
    save_adapter(bank.new_base_adapter(7), copy / BASE, 2, 32, COMMON[1], made_with)


def test_a_missing_base_adapter_is_made_again_without_the_models_weights(copy, monkeypatch, capsys):
    whole = tree(copy / "offline")
    shutil.rmtree(copy / BASE)
    answer("prag", "--overwrite", monkeypatch=monkeypatch)  # the adapters hold all it needs
    with pytest.raises(InputError, match="1 adapters or packs are bad"):
        verify(monkeypatch=monkeypatch)
    no_weights(monkeypatch)
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert "12 adapters stand already" in capsys.readouterr().out
    assert tree(copy / "offline") == whole
    verify(monkeypatch=monkeypatch)


def test_a_base_adapter_that_passages_did_not_start_from_is_not_made(copy, monkeypatch):
    for folder in stored_adapters(copy / ADAPTERS):
        path = folder / "training_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base": "f" * 16}))
    shutil.rmtree(copy / BASE)
    with pytest.raises(InputError, match="what passages start from was replaced"):
        run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert not (copy / BASE).exists()


@pytest.mark.parametrize("damage", ["cut off", "noise", "another"])
def test_inference_refuses_a_damaged_or_other_base_adapter(copy, monkeypatch, capsys, damage):
    whole = tree(copy / "offline")
    path = copy / BASE / WEIGHTS
    if damage == "another":
        other_base(copy)
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-9] if damage == "cut off" else data[:-9] + b"something")
    with pytest.raises(InputError, match=r"base.*base_weight.*delete .*run: .*encode\.py"):
        answer("prag", "--overwrite", monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="base"):
        run(encode, *FLAGS, monkeypatch=monkeypatch)
    with pytest.raises(InputError, match="1 adapters or packs are bad"):
        verify(monkeypatch=monkeypatch)
    verify("--remove_bad", monkeypatch=monkeypatch)
    assert len(stored_adapters(copy / ADAPTERS)) == 12  # no passage has to be trained again
    no_weights(monkeypatch)
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    assert tree(copy / "offline") == whole
    answer("prag", "--overwrite", monkeypatch=monkeypatch)


def test_inference_refuses_a_start_that_was_replaced(copy, monkeypatch):
    start = copy / "offline/demo-model/rank=2_alpha=32/warmup_direct"
    shutil.copytree(copy / BASE, start)
    flags = ["--init_adapter", "warmup"]
    run(encode, *FLAGS, *flags, monkeypatch=monkeypatch)
    answer("prag", *flags, monkeypatch=monkeypatch)
    shutil.rmtree(start)
    shutil.copytree(copy / ADAPTERS / "data_0/passage_0", start)
    with pytest.raises(InputError, match=r"put the first one back, or run: .*--overwrite"):
        answer("prag", *flags, "--overwrite", monkeypatch=monkeypatch)
    (start / WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match="the base adapter is damaged"):
        answer("prag", *flags, "--overwrite", monkeypatch=monkeypatch)


def test_a_link_to_another_disk_stays_where_what_it_leads_to_is_bad(copy, monkeypatch):
    whole = tree(copy / "offline")
    for link in (copy / BASE).parent, copy / ADAPTERS / "data_1":
        link.rename(copy / f"disk_{link.name}")
        link.symlink_to(copy / f"disk_{link.name}")
    for folder in copy / BASE, copy / ADAPTERS / "data_1/passage_0":
        (folder / WEIGHTS).write_bytes(b"")
    verify("--remove_bad", monkeypatch=monkeypatch)
    assert not (copy / BASE).exists() and not (copy / ADAPTERS / "data_1/passage_0").exists()
    assert (copy / ADAPTERS / "data_1/passage_1" / WEIGHTS).exists()
    run(encode, *FLAGS, monkeypatch=monkeypatch)
    for link in (copy / ADAPTERS / "data_1", (copy / BASE).parent):
        link.unlink()
        (copy / f"disk_{link.name}").rename(link)
    assert tree(copy / "offline") == whole
