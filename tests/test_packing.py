"""Packed adapters: the same bytes, killed at any step, damaged, written by two at once."""

import json
import os
import shutil

import pytest
import torch
from adapter_runs import (
    contents,
    files_below,
    in_processes,
    killed_at,
    linked_groups,
    save_tiny,
    tiny_data_type,
)
from safetensors import safe_open

from utils.running import InputError
from utils.store.adapter_packs import open_pack
from utils.store.folders import (
    load_adapter,
    read_adapter,
    read_training,
    read_weights,
    save_adapter,
    stored_adapters,
)
from utils.store.links import Shared
from utils.store.packing import drop, pack, packing_alone, unpack


@pytest.fixture
def adapters(tmp_path):
    tiny_data_type(tmp_path / "dev")
    return tmp_path / "dev"


def test_unpacking_gives_the_same_bytes_and_links(adapters):
    before, groups = files_below(adapters), linked_groups(adapters)
    assert len(groups) == 4
    held = contents(stored_adapters(adapters))
    assert pack(adapters) == 6
    assert {p.name for p in adapters.iterdir()} == {"packed"}
    names = sorted(p.suffix for p in (adapters / "packed").iterdir())
    assert names == [".json", ".safetensors"]
    assert contents(stored_adapters(adapters)) == held
    assert [f.parent.name for f in stored_adapters(adapters)] == (
        ["data_0"] * 2 + ["data_1"] * 2 + ["data_10"] * 2
    )
    assert unpack(adapters) == 6
    assert files_below(adapters) == before
    assert linked_groups(adapters) == groups
    assert pack(adapters) == 6 and pack(adapters) == 0  # nothing stands any more
    assert contents(stored_adapters(adapters)) == held


def test_equal_adapters_are_stored_once_and_any_tool_can_read_them(adapters):
    one = read_adapter(adapters / "data_0/passage_0")["adapter_model.safetensors"]
    pack(adapters)
    [weights] = (adapters / "packed").glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        assert len(file.keys()) == 4
        held = [file.get_tensor(key).numpy().tobytes() for key in file.keys()]  # noqa: SIM118
    assert one in held
    assert weights.stat().st_size < 4 * len(one) + 1000


def test_a_packed_adapter_loads_as_it_did_from_its_folder(adapters):
    bank = tiny_data_type(adapters.parent / "other")
    folder = adapters / "data_1/passage_1"
    before, made_with = load_adapter(folder, bank.shapes(2)), read_training(folder)
    pack(adapters)
    after = load_adapter(folder, bank.shapes(2))
    assert read_training(folder) == made_with and made_with["data"] == "0"
    for name, both in before.items():
        assert all(torch.equal(a, b) for a, b in zip(both, after[name], strict=True))
    assert read_training(adapters / "data_7/passage_0") is None
    with pytest.raises(InputError, match=r"data_7/passage_0.*cannot be read"):
        load_adapter(adapters / "data_7/passage_0", bank.shapes(2))
    other_rank = bank.shapes(3)
    with pytest.raises(InputError, match="has shape"):
        load_adapter(folder, other_rank)


def test_a_folder_comes_before_its_packed_form_and_replaces_it_with_the_next_pack(adapters):
    bank = tiny_data_type(adapters.parent / "other")
    pack(adapters)
    save_tiny(bank, adapters / "data_0/passage_0", 77)
    save_tiny(bank, adapters / "data_20/passage_0", 78)
    assert read_training(adapters / "data_0/passage_0")["data"] == "77"
    assert len(stored_adapters(adapters)) == 7
    held = contents(stored_adapters(adapters))
    assert pack(adapters) == 2
    assert contents(stored_adapters(adapters)) == held
    packed = open_pack(adapters)
    assert len({files["adapter_model.safetensors"] for files in packed.adapters.values()}) == 6
    assert len(list((adapters / "packed").iterdir())) == 2  # the old weights are gone
    # the link partner of the replaced one kept what it had
    assert read_training(adapters / "data_1/passage_1")["data"] == "0"
    assert unpack(adapters) == 7
    assert contents(stored_adapters(adapters)) == held


def test_unpacking_leaves_a_newer_folder(adapters):
    bank = tiny_data_type(adapters.parent / "other")
    pack(adapters)
    save_tiny(bank, adapters / "data_0/passage_0", 77)
    unpack(adapters)
    assert read_training(adapters / "data_0/passage_0")["data"] == "77"
    assert read_training(adapters / "data_1/passage_1")["data"] == "0"


@pytest.mark.parametrize("move", [pack, unpack])
def test_killed_before_any_change_of_the_disk_nothing_is_lost(adapters, tmp_path, move):
    if move is unpack:
        pack(adapters)
    source = tmp_path / "source"
    os.rename(adapters, source)

    def fresh():
        shutil.rmtree(adapters, ignore_errors=True)
        # keeps the hard links, which shutil.copytree does not
        assert os.system(f"cp -a {source} {adapters}") == 0

    fresh()
    held = contents(stored_adapters(adapters))
    move(adapters)
    done, groups = files_below(adapters), linked_groups(adapters)
    step, again = 1, True
    while again:
        fresh()
        again = killed_at(step, lambda: move(adapters))
        assert contents(stored_adapters(adapters)) == held, step
        move(adapters)
        assert contents(stored_adapters(adapters)) == held, step
        assert files_below(adapters) == done, step
        assert linked_groups(adapters) == groups, step
        step += 1
    assert step > 30, step
    print(f"{move.__name__}: killed at {step - 2} moments")


def test_killed_while_adding_to_a_pack_nothing_is_lost(adapters, tmp_path):
    bank = tiny_data_type(tmp_path / "other")
    pack(adapters)
    save_tiny(bank, adapters / "data_0/passage_0", 77)
    save_tiny(bank, adapters / "data_20/passage_0", 78)
    source = tmp_path / "source"
    shutil.copytree(adapters, source)
    held = contents(stored_adapters(adapters))
    pack(adapters)
    done = files_below(adapters)
    step, again = 1, True
    while again:
        shutil.rmtree(adapters)
        shutil.copytree(source, adapters)
        again = killed_at(step, lambda: pack(adapters))
        assert contents(stored_adapters(adapters)) == held, step
        pack(adapters)
        assert contents(stored_adapters(adapters)) == held, step
        assert files_below(adapters) == done, step
        step += 1
    assert step > 12, step
    print(f"adding: killed at {step - 2} moments")


def test_a_reader_finds_every_adapter_while_others_pack_and_unpack(adapters):
    folders = stored_adapters(adapters)
    held = contents(folders)

    def work(number):
        if number == 0:
            for _ in range(15):
                pack(adapters)
                unpack(adapters)
        else:
            for _ in range(150):
                for folder in folders:
                    assert read_training(folder) is not None, folder
                    read_weights(folder)

    in_processes(3, work)
    assert contents(folders) == held


def test_two_cannot_pack_at_once(adapters):
    with packing_alone(adapters), pytest.raises(InputError, match="another run packs"):
        pack(adapters)
    assert pack(adapters) == 6
    with packing_alone(adapters), pytest.raises(InputError, match="another run packs"):
        unpack(adapters)


def test_a_damaged_folder_is_not_packed(adapters):
    path = adapters / "data_1/passage_0/adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"passage_[01].*hash differs"):
        pack(adapters)
    assert len(list(adapters.glob("data_*/passage_*"))) == 6
    assert not (adapters / "packed").exists()


def changed(index: dict, **values) -> dict:
    return {**index, **values}


def renamed(index: dict, name: str) -> dict:
    adapters = dict(index["adapters"])
    adapters[name] = adapters.pop("data_0/passage_0")
    return changed(index, adapters=adapters)


INDEX_DAMAGES = {
    "missing": lambda index: None,
    "empty": lambda index: b"",
    "cut off": lambda index: json.dumps(index).encode()[:-9],
    "not UTF-8": lambda index: b"\xff" + json.dumps(index).encode(),
    "a list": lambda index: [index],
    "another format": lambda index: changed(index, format=2),
    "weights outside": lambda index: changed(index, weights="../../secret.safetensors"),
    "weights at a path": lambda index: changed(index, weights="/etc/passwd"),
    "weights without a name": lambda index: changed(index, weights=None),
    "an adapter outside": lambda index: renamed(index, "../../elsewhere/passage_0"),
    "an adapter above": lambda index: renamed(index, "data_0/../../passage_0"),
    "an adapter at a path": lambda index: renamed(index, "/tmp/data_0/passage_0"),
    "an adapter with a line break": lambda index: renamed(index, "data_0/passage_0\n"),
    "no adapters": lambda index: changed(index, adapters=None),
    "a file too many": lambda index: changed(
        index, adapters={"data_0/passage_0": {"../x": "0" * 32}}
    ),
    "a missing text": lambda index: changed(index, texts={}),
    "another text": lambda index: changed(
        index, texts={key: text.replace("2", "3") for key, text in index["texts"].items()}
    ),
    "a missing adapter": lambda index: changed(
        index, adapters=dict(list(index["adapters"].items())[1:])
    ),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES.values(), ids=INDEX_DAMAGES)
def test_a_damaged_index_is_named_with_the_remedy(adapters, tmp_path, damage):
    pack(adapters)
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    path = adapters / "packed/index.json"
    value = damage(json.loads(path.read_text()))
    if value is None:
        path.unlink()
    else:
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    before = files_below(tmp_path)
    for read in (open_pack, stored_adapters, pack, unpack):
        with pytest.raises(InputError, match=r"packed/index\.json"):
            read(adapters)
    with pytest.raises(InputError, match=r"packed/index\.json"):
        read_training(adapters / "data_0/passage_0")
    assert files_below(tmp_path) == before


WEIGHTS_DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 99),
    "a flipped byte of the header": lambda path: flip(path, 9),
    "a flipped hash": lambda path: flip(path, 14),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def flip(path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", WEIGHTS_DAMAGES.values(), ids=WEIGHTS_DAMAGES)
def test_damaged_packed_weights_are_named_with_the_remedy(adapters, damage):
    bank = tiny_data_type(adapters.parent / "other")
    pack(adapters)
    [path] = (adapters / "packed").glob("*.safetensors")
    damage(path)
    refused = 0
    for folder in stored_adapters(adapters):
        try:
            load_adapter(folder, bank.shapes(2))
        except InputError as error:
            assert "packed" in str(error) and "verify --remove_bad" in str(error)
            refused += 1
    assert refused >= 1
    with pytest.raises(InputError, match=r"packed.*verify --remove_bad"):
        unpack(adapters)
    assert (adapters / "packed/index.json").exists()


@pytest.mark.parametrize("number", range(4))
def test_a_flipped_byte_costs_the_adapter_that_holds_it_and_no_other(adapters, number):
    bank = tiny_data_type(adapters.parent / "other")
    pack(adapters)
    [path] = (adapters / "packed").glob("*.safetensors")
    size = read_size(adapters)
    flip(path, path.stat().st_size - number * size - 5)
    bad = set()
    for folder in stored_adapters(adapters):
        try:
            load_adapter(folder, bank.shapes(2))
        except InputError as error:
            assert "hash differs" in str(error)
            bad.add(f"{folder.parent.name}/{folder.name}")
    assert len(bad) in (1, 2)
    with pytest.raises(InputError, match="hash differs"):
        unpack(adapters)
    drop(adapters, bad)
    assert len(stored_adapters(adapters)) == 6 - len(bad)
    shutil.rmtree(adapters / "data_0", ignore_errors=True)
    unpack(adapters)
    assert len(list(adapters.glob("data_*/passage_*"))) >= 6 - len(bad) - 2


def read_size(adapters) -> int:
    packed = open_pack(adapters)
    return packed.size("data_0/passage_0")


def test_a_packed_adapter_that_holds_nan_is_refused(adapters):
    bank = tiny_data_type(adapters.parent / "other")
    adapter = load_adapter(adapters / "data_0/passage_0", bank.shapes(2))
    next(iter(adapter.values()))[0][0, 0] = torch.nan
    save_adapter(adapter, adapters / "data_0/passage_0", 2, 32, "tiny", {"data": "0"})
    pack(adapters)
    with pytest.raises(InputError, match=r"NaN or infinity; run .*adapters\.py verify"):
        load_adapter(adapters / "data_0/passage_0", bank.shapes(2))
    load_adapter(adapters / "data_0/passage_1", bank.shapes(2))


def test_a_repaired_folder_mends_a_damaged_pack(adapters):
    """The pack would have kept its damaged copy: the folder must not go before it is replaced."""
    held = contents(stored_adapters(adapters))
    shutil.copytree(adapters, adapters.parent / "kept")
    pack(adapters)
    [path] = (adapters / "packed").glob("*.safetensors")
    for number in range(4):
        flip(path, path.stat().st_size - number * read_size(adapters) - 5)
    for name in held:
        Shared().give(adapters.parent / "kept" / name, adapters / name)
    assert pack(adapters) == 6
    assert contents(stored_adapters(adapters)) == held


def test_stray_names_are_neither_packed_nor_removed(adapters):
    for stray in ("data_x/passage_0", "data_0/passage_", "data_3/passage_0/inner", "notes"):
        (adapters / stray).mkdir(parents=True)
        (adapters / stray / "adapter_model.safetensors").write_bytes(b"not ours")
    (adapters / "data_0/readme.txt").write_text("mine")
    assert pack(adapters) == 6
    assert len(list(adapters.rglob("adapter_model.safetensors"))) == 4
    assert (adapters / "data_0/readme.txt").read_text() == "mine"
    assert unpack(adapters) == 6
