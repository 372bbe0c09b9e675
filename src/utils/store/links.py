"""Each passage once on disk: folders of equal adapters share their files by hard link.

An adapter depends on its training data, its settings and its base, not on the question. So one that
stands, for another question or in another data type of the experiment, is given to further
folders instead of being trained again.
"""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from utils.files import writing_folder
from utils.running import InputError
from utils.store.adapter_packs import ADAPTER_FILES, PACKED
from utils.store.folders import (
    read_adapter,
    read_training,
    stands_unpacked,
    stored_adapters,
)

# Another file system, one without links, too many links, links to another user's files forbidden
NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS}


@dataclass
class Shared:
    """How many folders were given an adapter that stands, and the bytes that links saved."""

    linked: int = 0
    copied: int = 0
    saved: int = 0

    def __str__(self) -> str:
        copied = f", {self.copied} copied, where links are impossible" if self.copied else ""
        return f"{self.linked} linked to an equal one ({self.saved / 1e6:.1f} MB saved){copied}"

    def give(self, source: Path, folder: Path, replace: bool = False) -> None:
        """Make `folder` an adapter of the same bytes as the one in `source`, which may be packed.

        Whole or not at all. Where an adapter stands in `folder` it stays, or is replaced with
        `replace`; the folders that shared files with it keep theirs. Raises `InputError` where the
        disk refuses.
        """
        with writing_folder(folder, None if replace else stands_unpacked) as temporary:
            saved = give_files(source, temporary)
        self.linked += saved > 0
        self.copied += saved == 0
        self.saved += saved


def give_files(source: Path, folder: Path) -> int:
    """Put the files of the adapter in `source` into `folder`; the bytes that links saved."""
    if not stands_unpacked(source):
        for name, data in read_adapter(source).items():
            (folder / name).write_bytes(data)
        return 0
    saved = 0
    for name in ADAPTER_FILES:
        try:
            os.link(source / name, folder / name)
            saved += (folder / name).stat().st_size
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            shutil.copyfile(source / name, folder / name)
    return saved


def share_standing(
    wanted: dict[str, list[Path]], missing: set[Path], experiment: Path, settings: dict
) -> Shared:
    """Fill `missing` folders with equal adapters that stand; what is filled is taken out of it.

    `wanted` are the folders that each training data (by its hash) is for, `settings` what they are
    to be made with, `base` included. Adapters are looked for in all data types of `experiment`.
    """
    shared = Shared()
    lacking = {data for data, folders in wanted.items() if not missing.isdisjoint(folders)}
    for data, source in _equal_adapters(experiment, settings, lacking).items():
        for folder in wanted[data]:
            if folder in missing:
                shared.give(source, folder)
                missing.discard(folder)
                source = folder  # it can be linked to, even where the first one was a copy
    return shared


def _equal_adapters(experiment: Path, settings: dict, lacking: set[str]) -> dict[str, Path]:
    """A sound adapter for each training data of `lacking`, where one stands."""
    found: dict[str, Path] = {}
    for adapters in data_types_under(experiment) if lacking else []:
        try:
            folders = stored_adapters(adapters)
        except InputError:  # a damaged pack of another data type is not this run's business
            continue
        for folder in folders:
            if len(found) == len(lacking):
                return found
            try:
                made_with = read_training(folder) or {}
                data = made_with.pop("data", None)
                if data in lacking - found.keys() and made_with == settings:
                    read_adapter(folder)
                    found[data] = folder
            except InputError:  # a damaged one is trained again
                continue
    return found


def data_types_under(experiment: Path) -> list[Path]:
    """The folders of the data types that have adapters in `experiment`, sorted."""
    return sorted(
        folder
        for folder in experiment.glob("[!.]*")
        if any(folder.glob("data_*")) or (folder / PACKED).is_dir()
    )
