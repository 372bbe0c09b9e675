"""What stands under `offline/`: adapters by experiment and data type, and what they take."""

from collections.abc import Iterable
from pathlib import Path

from utils.augmentation.records import read_augmented
from utils.files import relative
from utils.layout import experiments, passage_folder
from utils.running import InputError
from utils.store.adapter_packs import ADAPTER_FILES, PACKED, WEIGHTS_FILE, name_of, open_pack
from utils.store.folders import read_training, stands_unpacked, stored_adapters
from utils.store.links import data_types_under

COLUMNS = ("data type", "passages", "distinct", "MB on disk", "MB each", "dtype", "base", "state")


def print_inventory() -> None:
    """Print a table for each experiment. What a hard link shares counts once in each figure."""
    everything: set[Path] = set()
    for experiment in experiments():
        rows = [row_of(adapters, everything) for adapters in data_types_under(experiment)]
        if rows:
            print(relative(experiment))
            print_table([COLUMNS, *rows])
    if not everything:
        print("no adapters; encode.py makes them")
        return
    print(f"in all {disk_bytes(everything) / 1e6:.1f} MB on disk")


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Print the rows with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def row_of(adapters: Path, everything: set[Path]) -> tuple[str, ...]:
    """A data type's row of the table; its files are added to `everything`."""
    try:
        folders = stored_adapters(adapters)
        packed = open_pack(adapters)
    except InputError as error:
        return (adapters.name, *["?"] * (len(COLUMNS) - 2), f"damaged: {error}")
    standing = {folder for folder in folders if stands_unpacked(folder)}
    files = {folder / file for folder in standing for file in ADAPTER_FILES}
    files |= {file for file in (adapters / PACKED).glob("[!.]*") if packed}
    everything |= files
    made: dict[str, set[str]] = {"data": set(), "save_dtype": set(), "base": set()}
    size = 0
    damaged = 0
    for folder in folders:
        try:
            record = read_training(folder) or {}
            if folder in standing:
                size += (folder / WEIGHTS_FILE).stat().st_size
            else:
                size += packed.size(name_of(folder))
        except InputError:
            damaged += 1
            continue
        for name, values in made.items():
            values.add(str(record.get(name, "?")))
    return (
        adapters.name,
        str(len(folders)),
        str(len(made["data"])),
        f"{disk_bytes(files) / 1e6:.1f}",
        f"{size / max(1, len(folders) - damaged) / 1e6:.3f}",
        ",".join(sorted(made["save_dtype"])),
        ",".join(sorted(made["base"])),
        state_of(adapters, folders, len(standing), damaged),
    )


def state_of(adapters: Path, folders: list[Path], standing: int, damaged: int) -> str:
    """Whether all passages of `data_aug/` have an adapter, and whether it is packed."""
    experiment = adapters.parent
    model = experiment.name.removeprefix("aug_model=")
    try:
        records = read_augmented(experiment.parent.parent.name, adapters.name, model)
    except InputError:
        words = ["data_aug/ is not there to compare"]
    else:
        wanted = {
            passage_folder(adapters, did, entry["pid"])
            for did, record in enumerate(records)
            for entry in record["augment"]
        }
        missing = len(wanted - set(folders))
        words = [f"{missing} missing" if missing else "complete"]
    if standing < len(folders):
        words.append("packed" if not standing else f"{len(folders) - standing} packed")
    if damaged:
        words.append(f"{damaged} damaged")
    return ", ".join(words)


def disk_bytes(files: Iterable[Path]) -> int:
    """What the files take on the disk, in whole blocks, each inode once."""
    inodes = {}
    for file in files:
        if file.exists():
            state = file.stat()
            inodes[state.st_dev, state.st_ino] = state.st_blocks * 512
    return sum(inodes.values())
