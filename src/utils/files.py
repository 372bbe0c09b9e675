"""Reading and writing files: every one appears whole or not at all.

A write goes to a temporary neighbour first and appears under its name by one rename, so that a
killed run never leaves half a file behind.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.running import InputError

DAY = 86_400  # seconds
RUN = secrets.token_hex(4)  # this process, told from an earlier one that had the same id


def relative(path: Path) -> str:
    """`path` as shown to the user: relative to the working folder where that is shorter.

    A link keeps its name where it can: it is what the user sees, and may delete.
    """
    for whole in (Path(os.path.abspath(path)), Path(path).resolve()):
        with suppress(ValueError):
            return str(whole.relative_to(Path.cwd()))
    return str(path)


# ------------------------------------------------------------------------------------------------
# Whole-or-nothing writing


@contextmanager
def writing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place when the block ends well.

    Raises `InputError` where the disk is full or refuses.
    """
    path = Path(path)
    with disk_failures_named(path):
        name = None
        try:
            handle, name = tempfile.mkstemp(**_temporary_name(path))
            os.close(handle)
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
            yield Path(name)
            _reach_the_disk(Path(name))
            os.replace(name, path)
        except BaseException:
            if name:
                Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def writing_folder(path: Path, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes `path`'s place when the block ends well.

    A folder that stands at `path` by then is replaced, but for one that `keep` says yes to: then
    the new one is dropped. So of several processes that make the same folder the last one, or with
    `keep` the first one, is left, whole. Raises `InputError` where the disk is full or refuses.
    """
    path = Path(path)
    with disk_failures_named(path):
        temporary = None
        try:
            temporary = Path(tempfile.mkdtemp(**_temporary_name(path)))
            os.chmod(temporary, 0o755)
            yield temporary
            for file in temporary.iterdir():
                # tantivy and safetensors make files only their owner can read
                if file.stat().st_mode & 0o777 != 0o644:
                    file.chmod(0o644)
            while not _took_its_place(temporary, path):
                if keep and keep(path):
                    shutil.rmtree(temporary, ignore_errors=True)
                    break
                remove_folder(path)
        except BaseException:
            if temporary:
                _remove_for_good(temporary)
            raise


def _remove_for_good(folder: Path) -> None:
    """Remove a folder into which a library's threads may still write for a moment."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.02)


def _took_its_place(temporary: Path, path: Path) -> bool:
    """Rename a folder to `path` unless one that is not empty stands there."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def remove_folder(path: Path) -> None:
    """Remove a folder: it is gone by one rename, so that nobody ever sees a part of it.

    One that is gone already is no error. Raises `InputError` where the disk refuses.
    """
    with disk_failures_named(path):
        old = tempfile.mkdtemp(**_temporary_name(path))
        with suppress(FileNotFoundError):
            os.rename(path, old)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_failures_named(path: Path) -> Iterator[None]:
    """Make an `InputError` of a failure of the disk in the block, which writes `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{relative(path)} cannot be written ({getattr(error, 'strerror', None) or error}); "
            "make room, get the right to write there, or set PRAG_ROOT to a folder on another "
            "disk; what is complete is kept, and the same command goes on from there"
        ) from None


def _reach_the_disk(file: Path) -> None:
    """Wait until the content is on the disk, so that no crash leaves an empty file renamed."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary_name(path: Path) -> dict[str, str | Path]:
    """What names a temporary neighbour of `path`, for `tempfile`: the run that writes it is in it.

    The folder is made, and what killed runs left in it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    prefix = f".{path.name[:40]}.{_machine()}-{os.getpid()}-{RUN}-"
    return {"prefix": prefix, "suffix": ".tmp", "dir": path.parent}


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose run was killed.

    That of a process which lives on this machine stays, that of another machine for a day.
    """
    for left in folder.glob(".*.tmp"):
        made_by = re.search(r"\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\w+\.tmp$", left.name)
        if not made_by:
            continue
        machine, process, run = made_by.groups()
        if machine != _machine():
            try:
                dead = time.time() - left.stat().st_mtime > DAY
            except OSError:  # finished meanwhile
                continue
        elif int(process) == os.getpid():
            dead = run != RUN
        else:
            dead = not _lives(int(process))
        if dead:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        pass
    return True


@cache
def _machine() -> str:
    """What tells machines that share a disk apart, containers and a machine's restart included."""
    start, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = start.read_text() if start.is_file() else ""
    processes = os.readlink(space) if space.is_symlink() else ""
    name = f"{platform.node()} {started} {processes}"
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with writing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------
# Reading


def read_text(path: Path, what: str) -> str:
    """The text of the file at `path`; `what` names it in errors ("the prompt set").

    Raises `InputError` where the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{what} {relative(path)} does not exist") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {relative(path)} is not UTF-8 (byte {error.start}); convert it to UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"{what} {relative(path)} cannot be read: {error.strerror}") from None


def read_json(path: Path, what: str) -> Any:
    """The JSON value in the file at `path`. Raises `InputError` where it is missing or broken."""
    return parse_json(read_text(path, what), f"{what} {relative(path)}")


class _KeyTwice(Exception):
    """A JSON object has a key twice, of which one would be lost."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(json.dumps(next(key for key in keys if keys.count(key) > 1)))
    return value


def parse_json(text: str, where: str) -> Any:
    """The JSON value in `text`, which `where` names. Raises `InputError` where it is broken."""
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
        if re.search(r"\\ud[89a-f]", text, re.IGNORECASE):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is no valid JSON: {error.msg} in line {error.lineno}, "
            f"column {error.colno}; it is damaged or cut off: mend it there, or make a stage's "
            "file anew"
        ) from None
    except UnicodeEncodeError:
        raise InputError(
            f"{where} holds half a character (an escape such as \\ud83d alone), which no file can "
            "hold; remove it or write its other half too"
        ) from None
    except _KeyTwice as error:
        raise InputError(f"{where} holds the key {error} twice in one object; rename one") from None
    except (ValueError, RecursionError):  # Python's limits: 4300 digits, about 1000 levels
        raise InputError(
            f"{where} holds a number of thousands of digits or thousands of nested lists; "
            "the file is damaged, or no data set"
        ) from None
    return value


def read_object(path: Path, what: str) -> dict:
    """The JSON object in the file at `path`. Raises `InputError` where it holds none."""
    return parse_object(read_text(path, what), f"{what} {relative(path)}")


def parse_object(text: str, where: str) -> dict:
    """The JSON object in `text`, which `where` names. Raises `InputError` where it holds none."""
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(
            f"{where} holds no JSON object; it is damaged or was written by "
            "something else: move it away, or use --overwrite"
        )
    return value


def hash_json(value: Any) -> str:
    """A short, stable fingerprint of a JSON value (settings, training data)."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
