"""Pack a data type's adapter folders into two files, and make the folders again.

Either can be killed at any moment and started again: folders are removed only when the pack that
holds them is on the disk, the pack only when all folders are. Where both hold an adapter its folder
counts (`utils.store.folders`), so readers may work meanwhile.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from utils.files import (
    disk_failures_named,
    relative,
    remove_folder,
    remove_leftovers,
    writing_folder,
)
from utils.running import InputError
from utils.store.adapter_packs import (
    ADAPTER_FILES,
    PACKED,
    WEIGHTS_FILE,
    Files,
    Pack,
    content_hash,
    name_of,
    open_pack,
    write_pack,
)
from utils.store.folders import read_adapter, stands_unpacked, stored_adapters
from utils.store.links import give_files


@contextmanager
def packing_alone(adapters: Path) -> Iterator[None]:
    """Keep other runs of `pack`, `unpack` and `drop` away from the data type's folder.

    At the end what a killed run left is removed. Raises `InputError` where one is at work.
    """
    with disk_failures_named(adapters):
        handle = os.open(adapters, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(
            f"another run packs or unpacks {relative(adapters)}; wait for it, or stop it"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
        _tidy(adapters)
    finally:
        os.close(handle)


def _tidy(adapters: Path) -> None:
    """Remove what killed runs left, and folders that are empty."""
    packed = open_pack(adapters)
    for folder in (adapters, adapters / PACKED, *adapters.glob("data_*")):
        if folder.is_dir():
            remove_leftovers(folder)
            with suppress(OSError):  # it is not empty
                folder.rmdir()
    for weights in (adapters / PACKED).glob("*.safetensors"):
        if weights != packed.weights:
            weights.unlink(missing_ok=True)


def pack(adapters: Path) -> int:
    """Pack every adapter whose folder stands in the data type's folder `adapters`; how many.

    Equal ones are stored once. What is packed already stays, unless a folder has replaced it.
    Raises `InputError` where an adapter is damaged, before anything is removed.
    """
    with packing_alone(adapters):
        standing = [folder for folder in stored_adapters(adapters) if stands_unpacked(folder)]
        if not standing:
            return 0
        old = open_pack(adapters)
        described = Contents(old, standing)
        if not described.are_in(old):
            described.write(adapters)
        new = open_pack(adapters)
        for folder in tqdm(
            standing, unit="passage", leave=False, desc=f"remove folders {adapters.name}"
        ):
            if not described.are_in(new, folder):
                raise InputError(
                    f"{relative(folder)} changed meanwhile, or cannot be read back from the pack; "
                    "it stays: start again"
                )
            remove_folder(folder)
        return len(standing)


def unpack(adapters: Path) -> int:
    """Make the folders of all packed adapters of `adapters` again, then remove the pack; how many.

    They hold the bytes that were packed, equal ones shared by hard link. A folder that stands
    stays. Raises `InputError` where a packed adapter is damaged; the pack then stays too.
    """
    with packing_alone(adapters):
        if (packed := open_pack(adapters)) is None:
            return 0
        first: dict[tuple[str, ...], Path] = {}  # a folder for each distinct set of files
        for name, files in packed.adapters.items():
            folder, key = adapters / name, tuple(files.values())
            if stands_unpacked(folder) and files_of(folder) == files:
                first.setdefault(key, folder)
        bar = tqdm(
            packed.adapters.items(), unit="passage", leave=False, desc=f"unpack {adapters.name}"
        )
        for name, files in bar:
            folder, key = adapters / name, tuple(files.values())
            if not stands_unpacked(folder):
                with writing_folder(folder, stands_unpacked) as temporary:
                    give_files(first.get(key, folder), temporary)
                first.setdefault(key, folder)
        os.sync()  # all that was written must last before the pack goes
        remove_folder(adapters / PACKED)
        return len(packed.adapters)


def drop(adapters: Path, bad: set[str]) -> None:
    """Take the packed adapters with the names `bad` out of the pack of `adapters`.

    Any other that cannot be read goes too: it is one whose folder stands, and that is what counts.
    """
    with packing_alone(adapters):
        packed = open_pack(adapters)
        lost = unreadable(packed)
        contents = {
            name: files
            for name, files in packed.adapters.items()
            if name not in bad and files[WEIGHTS_FILE] not in lost
        }
        if not contents:
            remove_folder(adapters / PACKED)
            return
        sizes = {files[WEIGHTS_FILE]: packed.size(name) for name, files in contents.items()}
        write_pack(adapters, contents, used_texts(packed.texts, contents), sizes, packed.content)


def unreadable(packed: Pack) -> set[str]:
    """The hashes of the weights files in the pack that cannot be read."""
    lost = set()
    for held in {files[WEIGHTS_FILE] for files in packed.adapters.values()}:
        try:
            packed.content(held)
        except InputError:
            lost.add(held)
    return lost


def remove_pack(adapters: Path) -> None:
    """Remove the pack of `adapters`, readable or not."""
    with packing_alone(adapters):
        remove_folder(adapters / PACKED)


def files_of(folder: Path) -> Files:
    """The hash of each of the adapter's files. Raises `InputError` where it is damaged."""
    return {file: content_hash(data) for file, data in read_adapter(folder).items()}


def used_texts(texts: dict[str, str], contents: dict[str, Files]) -> dict[str, str]:
    """The texts that `contents` name."""
    used = {held for files in contents.values() for held in files.values()}
    return {held: text for held, text in texts.items() if held in used}


class Contents:
    """What a pack is to hold: all of an earlier one, and the folders that stand."""

    def __init__(self, old: Pack | None, standing: list[Path]):
        """Read all folders. Raises `InputError` where one is damaged."""
        self.old, self.standing = old, standing
        self.adapters = dict(old.adapters) if old else {}
        self.texts = dict(old.texts) if old else {}
        self.sizes: dict[str, int] = {}
        self.sources: dict[str, Path] = {}  # weights hash -> a folder that has them
        self.states = {folder: _state(folder) for folder in standing}
        self.sound: set[tuple[int, str]] = set()  # weights that were read back from a pack
        hashes: dict[tuple, Files] = {}  # of what hard links share, once
        for folder in tqdm(standing, unit="passage", leave=False, desc="read folders"):
            state = self.states[folder]
            if state not in hashes:
                hashes[state] = self._described(folder)
            self.adapters[name_of(folder)] = hashes[state]
        for name, files in self.adapters.items():
            if files[WEIGHTS_FILE] not in self.sizes:
                self.sizes[files[WEIGHTS_FILE]] = old.size(name)

    def _described(self, folder: Path) -> Files:
        files = read_adapter(folder)
        hashes = {file: content_hash(data) for file, data in files.items()}
        for file, held in hashes.items():
            if file == WEIGHTS_FILE:
                self.sizes[held] = len(files[file])
                self.sources.setdefault(held, folder)
            else:
                self.texts[held] = files[file].decode()
        return hashes

    def write(self, adapters: Path) -> None:
        """Write the pack of the data type's folder `adapters`."""
        texts = used_texts(self.texts, self.adapters)
        write_pack(adapters, self.adapters, texts, self.sizes, self._weights)

    def _weights(self, held: str) -> bytes:
        if held not in self.sources:
            return self.old.content(held)
        data = read_adapter(self.sources[held])[WEIGHTS_FILE]
        if content_hash(data) != held:
            raise InputError(f"{relative(self.sources[held])} changed meanwhile: start again")
        return data

    def are_in(self, packed: Pack | None, folder: Path | None = None) -> bool:
        """Whether `packed` holds every standing folder, or `folder`, as it is on the disk."""
        for one in [folder] if folder else self.standing:
            files = self.adapters[name_of(one)]
            if packed is None or packed.adapters.get(name_of(one)) != files:
                return False
            if _state(one) != self.states[one]:
                return False
            held = files[WEIGHTS_FILE]
            if (id(packed), held) not in self.sound:
                try:
                    packed.content(held)
                except InputError:
                    return False
                self.sound.add((id(packed), held))
        return True


def _state(folder: Path) -> tuple:
    """What changes with any of the adapter's files, and is one for those that links share."""
    try:
        found = [(folder / file).stat() for file in ADAPTER_FILES]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; make the adapter again") from None
    return tuple((one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) for one in found)
