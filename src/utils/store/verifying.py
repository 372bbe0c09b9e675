"""`adapters.py verify`: is every adapter sound, and is it the one of its place?

An adapter is compared with what `inference.py` would ask of it: the settings of the flags, the
passage of the augmented data, the base adapter. Where none of a data type is the one of its place,
all stay: a wrong flag or changed data must not cost what took hours to train.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from utils.files import relative, remove_folder
from utils.flags import init_folder, shared_flags
from utils.lora.bank import LoraBank
from utils.running import InputError
from utils.store.adapter_packs import name_of
from utils.store.base import base_folder_of, skeleton_bank
from utils.store.folders import (
    check_config,
    fingerprint,
    in_order,
    is_stored,
    load_adapter,
    read_training,
    stands_unpacked,
    stored_fingerprint,
)
from utils.store.packing import drop, remove_pack
from utils.store.wanted import Wanted, readable_adapters, wanted_adapters


@dataclass
class Verified:
    """What was found, and what is compared: adapters with the shapes and the base adapter."""

    shapes: dict
    base: str | None = None  # None: not compared
    count: int = 0
    bad: int = 0
    missing: int = 0
    kept: int = 0  # of the bad ones and of what is in the way: never deleted

    def __str__(self) -> str:
        missing = f", {self.missing} missing" if self.missing else ""
        return f"{self.count} adapters verified, {self.bad} bad{missing}"


def verify(options: argparse.Namespace, chosen: list[Path]) -> None:
    """Print a line for everything that is bad, foreign or missing.

    `chosen` are the folders of the data types that have adapters. Raises `InputError` where
    anything is, unless `--remove_bad` has left all of it to `encode.py`.
    """
    bank = skeleton_bank(options)
    wanted = wanted_adapters(options, chosen)
    found = Verified(bank.shapes(options.lora_rank))
    found.base = verified_base(options, bank, chosen, found)
    for adapters in sorted(wanted):
        verify_data_type(adapters, wanted[adapters], options, found)
    print(found)
    words = [f"{found.bad} adapters or packs are bad"] if found.bad else []
    words += [f"{found.missing} adapters are missing"] if found.missing else []
    problem, again = " and ".join(words), f"python src/encode.py {shared_flags(options)}"
    if options.remove_bad and found.kept:
        raise InputError(f"{problem}; {found.kept} things stay, the lines above say what to do")
    if problem and not options.remove_bad:
        deletes = "--remove_bad deletes those that encode.py can make again, then "
        raise InputError(f"{problem}; {deletes if found.bad else ''}run: {again}")
    if problem:
        print(f"next: {again}")


def verified_base(
    options: argparse.Namespace, bank: LoraBank, chosen: list[Path], found: Verified
) -> str | None:
    """The fingerprint of what the adapters must have started from, or None where none is known.

    A `base_weight` that is damaged, or that no adapter was trained from, is removed with
    `--remove_bad`: it follows from its seed. A trained one stays.
    """
    start, folder = init_folder(options), base_folder_of(options)
    made = None if start else fingerprint(bank.new_base_adapter(options.seed))
    recorded = {
        made_with.get("base")
        for adapters in chosen
        for adapter in readable_adapters(adapters)[0]
        if (made_with := record_of(adapter))
    }
    try:
        if not stands_unpacked(folder):
            raise InputError(
                f"there is no base adapter in {relative(folder)}, so that nothing tells whether "
                "the others belong to it"
            )
        load_adapter(folder, found.shapes)
        check_config(folder, options.lora_rank, options.lora_alpha, "", "make it again")
        stands = stored_fingerprint(folder)
        if start:
            return stands
        read_training(folder)
        if stands != made and (made in recorded or (recorded and stands not in recorded)):
            raise InputError(
                f"the adapters were not trained from the base adapter {stands} in "
                f"{relative(folder)}; delete {relative(folder)} and make it again"
            )
        return stands
    except InputError as error:
        print(error)
        found.bad += 1
        if start:
            found.kept += 1
        elif blocker := in_the_way(folder):
            print(way_blocked(blocker))
            found.kept += 1
        elif options.remove_bad and folder.exists():
            remove_adapter(folder, folder)
    return made if made and made in recorded else None


def verify_data_type(
    adapters: Path, wanted: Wanted, options: argparse.Namespace, found: Verified
) -> None:
    """Print a line for everything that is wrong in a data type's folder, and count it."""
    folders, pack_problem = readable_adapters(adapters)
    if pack_problem:
        print(pack_problem)
        found.bad += 1
        if options.remove_bad:
            remove_pack(adapters)
    blocked = {f: place for f in {*folders, *wanted.needed} if (place := in_the_way(f))}
    for place in sorted(set(blocked.values())):
        print(way_blocked(place))
        found.kept += 1
    found.missing += len(blocked)
    lacking = wanted.needed - {*folders, *blocked}
    if pack_problem:  # they may be in the pack, whose line is enough
        lacking = set()
    elif not folders and lacking:
        print(f"{relative(adapters)} has none of its {len(lacking)} adapters")
    else:
        for folder in in_order(lacking):
            print(f"there is no adapter in {relative(folder)}")
    found.missing += len(lacking)

    folders = [folder for folder in folders if folder not in blocked]
    all_foreign = are_all_foreign(folders, wanted, found.base)
    bad_in_pack = set()
    for folder in tqdm(folders, unit="passage", desc=f"verify {adapters.name}"):
        if not is_stored(folder):  # it was found through a link that is gone by now
            found.missing += 1
            continue
        found.count += 1
        while True:  # below a folder that is removed a packed adapter may come to light
            problem, keep = damage_of(folder, options, found.shapes), False
            is_damaged = problem is not None
            if not is_damaged and (problem := foreign_by(folder, wanted, found.base)):
                keep = all_foreign
                problem += f"; {remedy_for(folder, keep)}"
            if not problem:
                break
            tqdm.write(problem)
            found.bad += 1
            found.kept += keep
            if not stands_unpacked(folder) and not keep:
                bad_in_pack.add(name_of(folder))
            if keep or not options.remove_bad or not stands_unpacked(folder):
                break
            remove_adapter(folder, folder if is_damaged else link_to(folder))
            if not is_stored(folder):
                break
    if bad_in_pack and options.remove_bad:
        drop(adapters, bad_in_pack)
    if wanted.records and (others := [f for f in folders if f not in wanted.records]):
        print(
            f"{len(others)} adapters in {relative(adapters)}, such as {relative(others[0])}, "
            "belong to no passage of the augmented data; they are not used, and stay"
        )


def damage_of(folder: Path, options: argparse.Namespace, shapes: dict) -> str | None:
    """What is wrong with the adapter by itself, if anything."""
    remedy = f"delete {relative(folder)} and make it again"
    try:
        load_adapter(folder, shapes)
        check_config(folder, options.lora_rank, options.lora_alpha, "", remedy)
        read_training(folder)
    except InputError as error:
        return str(error)
    return None


def foreign_by(folder: Path, wanted: Wanted, base: str | None) -> str | None:
    """By what the adapter, whose record can be read, is not the one of its place, if it is not."""
    made_with = read_training(folder) or {}
    for name, value in wanted.records.get(folder, {}).items():
        if (made := made_with.get(name)) != value:
            what = "its passage has" if name == "data" else "the flags have"
            return (
                f"adapter {relative(folder)} was made with {name} = {made}, but {what} {value}: "
                "it is foreign there"
            )
    if base and made_with.get("base") != base:
        return (
            f"adapter {relative(folder)} was trained from the base {made_with.get('base')}, "
            f"but {base} stands there"
        )
    return None


def are_all_foreign(folders: list[Path], wanted: Wanted, base: str | None) -> bool:
    """Whether there are adapters with a readable record, and none is the one of its place."""
    readable = [folder for folder in folders if record_of(folder)]
    compared = [folder for folder in readable if folder in wanted.records] or readable
    return bool(compared) and all(foreign_by(folder, wanted, base) for folder in compared)


def remedy_for(folder: Path, keep: bool) -> str:
    """What to do about a foreign adapter."""
    if keep:
        return (
            "none of this data type is the one of its place, so all stay: give the flags and the "
            "data they were made with, or run encode.py with --overwrite"
        )
    link = link_to(folder)
    return f"delete {f'the link {relative(link)}' if link else relative(folder)}, make it again"


def record_of(folder: Path) -> dict:
    """What made the adapter; empty where that cannot be read."""
    try:
        return read_training(folder) or {}
    except InputError:
        return {}


def in_the_way(folder: Path) -> Path | None:
    """What stands in the place of the adapter's folder, or of the one above it, and is none."""
    places = (folder.parent, folder)
    return next((p for p in places if os.path.lexists(p) and not p.is_dir()), None)


def way_blocked(place: Path) -> str:
    """The line about what is in the way."""
    return (
        f"{relative(place)} is no folder and in the place of one; it stays: move it away, then "
        "run encode.py"
    )


def link_to(folder: Path) -> Path | None:
    """The symbolic link that the adapter was found through, if any."""
    return next((place for place in (folder.parent, folder) if place.is_symlink()), None)


def remove_adapter(folder: Path, link: Path | None) -> None:
    """Remove an adapter's folder, or the `link` that leads to it where it is one."""
    if link and link.is_symlink():
        link.unlink(missing_ok=True)
    else:
        remove_folder(folder)
