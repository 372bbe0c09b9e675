"""Pack a data type's adapter folders into one tar, to keep or move, and make the folders again.

Both can be killed at any moment and started again. Readers know folders alone.
"""

import os
import tarfile
from pathlib import Path

from utils.files import disk_failures_named, relative, remove_folder, scratch_folder, writing_file
from utils.layout import packed_file
from utils.running import InputError
from utils.store.folders import is_stored, read_training, read_weights, stored_adapters


def pack(adapters: Path) -> int:
    """Pack all adapters in the data type's folder `adapters` and remove their folders; how many.

    What an earlier tar holds stays in it, unless a folder has replaced it. Raises `InputError` if
    an adapter is damaged, before anything is removed.
    """
    unpack(adapters)
    folders = stored_adapters(adapters)
    for folder in folders:
        read_training(folder)
        read_weights(folder)
    if folders:
        with writing_file(packed_file(adapters)) as temporary, tarfile.open(temporary, "w") as tar:
            for file in (file for folder in folders for file in sorted(folder.iterdir())):
                tar.add(file, str(file.relative_to(adapters)))
        for folder in folders:
            remove_folder(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
    return len(folders)


def unpack(adapters: Path) -> int:
    """Make the folders of all packed adapters again, then remove the tar; how many it held. A
    folder that is there stays. Raises `InputError` if the tar is damaged; it then stays."""
    packed = packed_file(adapters)
    if not packed.exists():
        return 0
    adapters.mkdir(parents=True, exist_ok=True)
    with disk_failures_named(adapters), scratch_folder(adapters / "unpacked") as temporary:
        try:
            with tarfile.open(packed) as tar:
                _refuse_strange(tar)
                tar.extractall(temporary)
        except (tarfile.TarError, EOFError) as error:
            problem = f"{relative(packed)} cannot be unpacked ({error}): it is damaged"
            remedy = "put a copy in its place, or delete it and run encode.py again"
            raise InputError(f"{problem}; {remedy}") from None
        found = stored_adapters(temporary)
        for folder in found:
            target = adapters / folder.relative_to(temporary)
            if not is_stored(target):
                target.parent.mkdir(exist_ok=True)
                os.rename(folder, target)
        os.sync()  # all that was written must last before the tar goes
    packed.unlink()
    return len(found)


def _refuse_strange(tar: tarfile.TarFile) -> None:
    """Raise `TarError` if `tar` holds what `pack` does not write, such as a path that leads out of
    its folder; Python's own filter is not in every 3.11. From here on it lets all pass."""
    for one in tar:
        names = [Path(one.name), Path(one.linkname if one.islnk() else "")]
        outside = any(name.is_absolute() or ".." in name.parts for name in names)
        if outside or not (one.isfile() or one.islnk()):
            raise tarfile.TarError(f"it holds {one.name!r}")
    tar.extraction_filter = lambda member, path: member


def where_packed(folder: Path) -> str:
    """What to do if the adapter that is not in `folder` may be packed, else ""."""
    adapters = folder.parents[1]
    if packed_file(adapters).is_file():
        return f"{relative(packed_file(adapters))} holds packed ones: python src/adapters.py unpack"
    if (older := adapters / "packed").is_dir():
        how = "git checkout 4200079, then python src/adapters.py unpack with the same flags"
        return f"{relative(older)} was made by an older version: unpack it with that one ({how})"
    return ""
