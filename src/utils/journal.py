"""What a stage has done so far, one JSON line per finished piece, so that a killed run goes on.

A journal begins with a line that says which settings it belongs to. Each piece is appended when it
is finished; a last line that a kill cut off is dropped when the journal is opened again. Processes
that share the work write a file each and read all of them.
"""

import fcntl
import glob
import json
import os
from pathlib import Path
from typing import Any

from utils.files import disk_failures_named, relative
from utils.running import InputError


def refuse_difference(what: str, made_with: dict, asked: dict, remedy: str) -> None:
    """Raise `InputError` naming the first setting in which existing work differs from `asked`.

    `asked` names causes before their effects: settings first, then the hash of the data.
    """
    for name in [*asked, *(made_with.keys() - asked.keys())]:
        if made_with.get(name) != asked.get(name):
            raise InputError(
                f"{what} was made with {name} = {json.dumps(made_with.get(name))}, "
                f"but this run has {name} = {json.dumps(asked.get(name))}; {remedy}"
            )


class Journal:
    """The finished pieces of one piece of work, which several processes may share.

    Process number `part` appends to a file of its own, `{path}.{part}`; `items` holds the pieces of
    all parts, part by part in the order of their writing. Raises `InputError` where a part belongs
    to other settings than `settings`, where it is damaged by more than a cut-off last line, where
    another run is writing it, and where the disk is full or refuses.
    """

    def __init__(self, path: Path, settings: dict, part: int = 0, shared: bool = False):
        """`shared`: other processes may write their parts meanwhile."""
        self.path, self.settings = path, settings
        self.own = path.with_name(f"{path.name}.{part}")
        self.items: list[Any] = []
        with disk_failures_named(self.own):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.own.open("r+b" if self.own.exists() else "w+b", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise _written_by_another(self.own) from None
        except OSError:  # a file system without locks
            pass
        try:
            if not shared:
                self._refuse_other_writers()
            self.reread()
            whole = _read_part(self.own, settings)[1]
            with disk_failures_named(self.own):
                self.file.truncate(whole)
                self.file.seek(whole)
            if whole == 0:
                self._write(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _refuse_other_writers(self) -> None:
        for part in journal_parts(self.path):
            if part == self.own:
                continue
            with disk_failures_named(part), part.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _written_by_another(part) from None

    def reread(self) -> None:
        """Read what all parts hold now."""
        self.items = []
        for part in journal_parts(self.path):
            self.items += _read_part(part, self.settings)[0]

    def _write(self, value: Any) -> None:
        line = memoryview(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        with disk_failures_named(self.path):
            while line:  # a disk that fills up takes a part
                line = line[self.file.write(line) :]
            os.fsync(self.file.fileno())

    def add(self, item: Any) -> None:
        """Append one finished piece; it is on the disk when this returns."""
        self._write(item)
        self.items.append(item)

    def close(self) -> None:
        """Close the file and keep it."""
        self.file.close()

    def remove(self) -> None:
        """Delete all parts: their content stands in the stage's result now."""
        self.close()
        remove_journal(self.path)


def _written_by_another(part: Path) -> InputError:
    return InputError(
        f"another run is writing {relative(part)}; wait for it, stop it, or give each job of an "
        "array its own --shard"
    )


def journal_parts(path: Path) -> list[Path]:
    """The files of the journal `path`, one for each process that has written."""
    parts = [(p.suffix[1:], p) for p in path.parent.glob(f"{glob.escape(path.name)}.*")]
    return [part for _, part in sorted((int(n), p) for n, p in parts if n.isdecimal())]


def remove_journal(path: Path) -> None:
    """Delete the journal `path` with all its parts, if there is one."""
    for part in journal_parts(path):
        part.unlink(missing_ok=True)


def _read_part(path: Path, settings: dict) -> tuple[list[Any], int]:
    """The pieces in one part, and the bytes up to the end of its last whole line."""
    items: list[Any] = []
    whole = 0
    lines = _lines(path)
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
            if number == 0 and not isinstance(value, dict):
                raise ValueError
        except (ValueError, RecursionError):
            if number < len(lines) - 1 or (number == 0 and line.endswith(b"\n")):
                raise InputError(
                    f"the journal of unfinished work {relative(path)} is damaged in line "
                    f"{number + 1}; remove it, or use --overwrite, to start anew"
                ) from None
            break
        if not line.endswith(b"\n"):
            break
        if number == 0:
            refuse_difference(
                f"the unfinished work in {relative(path)}",
                value,
                settings,
                "use the same settings to go on, or --overwrite to start anew",
            )
        else:
            items.append(value)
        whole += len(line)
    return items, whole


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"the journal of unfinished work {relative(path)} cannot be read "
            f"({error.strerror}); remove it, or use --overwrite, to start anew"
        ) from None
