"""Reading and writing files: each appears by one rename, whole or not at all.

`InputError` if a file is missing or not what it should be, and if a disk is full or refuses.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.running import InputError

RUN = secrets.token_hex(4)  # this process, told from an earlier one that had the same id


def relative(path: Path) -> str:
    """`path` as the user sees it: relative to the working folder if below it, links as they are."""
    for whole in (os.path.abspath(path), os.path.realpath(path)):
        if Path(whole).is_relative_to(Path.cwd()):
            return str(Path(whole).relative_to(Path.cwd()))
    return str(path)


def missing(path: Path) -> str:
    """What to say of a path at which nothing is: that it does not exist, or is a link."""
    return "is a link to nothing" if Path(path).is_symlink() else "does not exist"


def refuse_link(path: Path) -> None:
    """Raise `InputError` if `path`, which is to be replaced, is a link."""
    if path.is_symlink():
        raise InputError(
            f"{relative(path)} is a link to {os.readlink(path)}: a link is read, never replaced; "
            "remove the link (what it leads to stays)"
        )


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block ends well."""
    with disk_failures_named(path), scratch_folder(path) as folder:
        temporary = folder / path.name
        temporary.touch(0o644)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # so that no crash leaves an empty file renamed
        os.replace(temporary, path)


@contextmanager
def writing_folder(path: Path, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder; it takes the place of `path` when the block ends well.

    A folder that is at `path` by then is replaced, or left if `keep` says yes to it: of several
    processes that make the same folder the last one, or with `keep` the first one, is left, whole.
    """
    with disk_failures_named(path), scratch_folder(path) as scratch:
        temporary = scratch / path.name
        temporary.mkdir(0o755)
        yield temporary
        for file in temporary.iterdir():
            if file.stat().st_mode & 0o777 != 0o644:  # tantivy's and safetensors' are their owner's
                file.chmod(0o644)
        while not (keep and keep(path)):
            refuse_link(path)
            try:
                os.rename(temporary, path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not (keep and keep(path)):  # another process was first
                    remove_folder(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, by one rename, so that nobody ever sees a part of it."""
    refuse_link(path)
    with disk_failures_named(path), scratch_folder(path) as scratch, suppress(FileNotFoundError):
        os.rename(path, scratch / path.name)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, removed at the end; its name tells which run made it.
    The parent folder is made, and what killed runs left in it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    prefix = f".{path.name[:40]}.{_machine()}-{os.getpid()}-{RUN}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=path.parent))
    try:
        yield folder
    finally:
        remove_busy(folder)


def remove_busy(folder: Path) -> None:
    """Remove a folder of temporary files, into which a library's threads may write for a moment."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.02)


@contextmanager
def disk_failures_named(path: Path) -> Iterator[None]:
    """Make an `InputError` of a failure of the disk in the block, which writes `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{relative(path)} cannot be written ({getattr(error, 'strerror', None) or error}); "
            "make room, get the right to write there, or set PRAG_ROOT to a folder on another disk"
        ) from None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders in `folder` of killed runs; another machine's after a day."""
    for left in folder.glob(".*.tmp"):
        made_by = re.search(r"\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\w+\.tmp$", left.name)
        if not made_by:
            continue
        machine, process, run = made_by.groups()
        with suppress(OSError):  # finished meanwhile
            if machine != _machine():
                dead = time.time() - left.stat().st_mtime > 86_400  # a day
            elif int(process) == os.getpid():
                dead = run != RUN
            else:
                dead = not Path(f"/proc/{process}").exists()
            if dead:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


@cache
def _machine() -> str:
    """What tells machines that share a disk apart, containers and a machine's restart included."""
    started = Path("/proc/sys/kernel/random/boot_id").read_text()
    name = f"{platform.node()} {started} {os.readlink('/proc/self/ns/pid')}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_text(path: Path, what: str) -> str:
    """The text of the UTF-8 file at `path`; `what` names it in errors ("the prompt set")."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{what} {relative(path)} {missing(path)}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {relative(path)} is not UTF-8 (byte {error.start}); convert it to UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{what} {relative(path)} cannot be read: {error.strerror}") from None


def read_json(path: Path, what: str) -> Any:
    """The JSON value in the file at `path`; `what` names it in errors."""
    return parse_json(read_text(path, what), f"{what} {relative(path)}")


def parse_json(text: str, where: str) -> Any:
    """The JSON value in `text`, which `where` names. Raises `InputError` if it is broken."""
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):  # half a character cannot be written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        remedy = "mend it there, or fetch or make it again"
        if "Extra data" in str(error):
            remedy = "it may be JSON lines: put all values into one list [..., ...]"
        cause = re.sub("; use sys.*", "", str(error))  # Python's advice about very long numbers
        raise InputError(f"{where} is not valid JSON ({cause}); {remedy}") from None
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict:
    """An object; a key that it has twice is an error, as one value would be lost."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {json.dumps(twice)} twice in one object: rename one")
    return value


def read_object(path: Path, what: str) -> dict:
    """The JSON object in the file at `path`; `what` names it in errors."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(
            f"{what} {relative(path)} does not hold a JSON object; remove it, or use --overwrite"
        )
    return value


def hash_json(value: Any) -> str:
    """A short, stable fingerprint of a JSON value (settings, training data)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
