"""What a stage has done so far, one JSON line per finished piece, so that a killed run goes on.

Its first line says which settings it belongs to; a last line that a kill cut off is dropped when it
is opened again. Processes that share the work write a file each and read all of them.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from utils.files import disk_failures_named, relative
from utils.recipe import DEFAULTS
from utils.running import InputError

HINTS = {  # what another hash means
    "prompts": "another --prompts, or its file has changed",
    "model": "another model, or its files have changed",
    "data": "the questions or the texts in data_aug/ have changed",
    "judged": "the questions were answered again",
    "weights": "the adapters were trained again",
    "beside": "another plan of neighbours, or their texts have changed",
    "group": "another plan of neighbours, or their texts have changed",
}


def first_difference(made_with: dict, asked: dict) -> str | None:
    """The name of the first setting in which two records differ, None if they agree. One that a
    record does not hold has its default. `asked` names causes before their effects."""
    made, now = DEFAULTS | made_with, DEFAULTS | asked
    both = ((name, made.get(name), now.get(name)) for name in (*asked, *made_with))
    return next((name for name, *values in both if not agree(name, *values)), None)


def agree(name: str, one: Any, other: Any) -> bool:
    """Whether two values of the setting `name` mean the same. Commit ee391bc and before recorded
    the first part alone of what a model is told by: `name@ends`, now `name@ends+every byte`."""
    old_first = sorted(map(str, (one, other)), key=len)
    return one == other or (name == "model" and old_first[1].startswith(f"{old_first[0]}+"))


def differing(name: str, made_with: dict, asked: dict) -> str:
    """In which way the setting `name` differs, in words."""
    made, now = (json.dumps(of.get(name, DEFAULTS.get(name))) for of in (made_with, asked))
    hint = f" ({HINTS[name]})" if name in HINTS else ""
    return f"was made with {name} = {made}, but this run has {name} = {now}{hint}"


def refuse_difference(what: str, made_with: dict, asked: dict, remedy: str) -> None:
    """Raise `InputError` naming the first setting in which existing work differs from `asked`."""
    if name := first_difference(made_with, asked):
        raise InputError(f"{what} {differing(name, made_with, asked)}; {remedy}")


class Journal(AbstractContextManager):
    """The finished pieces of one piece of work, which several processes may share.

    Process number `part` appends to `{path}.{part}`; `items` are the pieces of all parts in order.
    Raises `InputError` if a part has other settings, is damaged, or another run is writing it.
    """

    def __init__(self, path: Path, settings: dict, part: int = 0, shared: bool = False):
        """`shared`: other processes may write their parts meanwhile."""
        self.path, self.settings = path, settings
        self.own = path.with_name(f"{path.name}.{part}")
        with disk_failures_named(self.own), ExitStack() as failing:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = failing.enter_context(self.own.open("ab", buffering=0))
            _lock(self.file, fcntl.LOCK_EX, self.own)
            refuse_running([] if shared else set(journal_parts(path)) - {self.own})
            if _is_bare(self.own):  # its settings count no more
                self.file.truncate(0)
            self.reread()
            whole = _read_part(self.own, settings)[1]
            self.file.truncate(whole)
            if whole == 0:
                self._write(settings)
            failing.pop_all()

    def __exit__(self, *error: object) -> None:
        self.close()

    def reread(self) -> None:
        """Read what all parts hold now."""
        parts = [_read_part(part, self.settings)[0] for part in journal_parts(self.path)]
        self.items: list[Any] = [item for part in parts for item in part]

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
        """Delete all parts: their content is in the stage's result now."""
        self.close()
        for part in journal_parts(self.path):
            part.unlink(missing_ok=True)


def journal_parts(path: Path) -> list[Path]:
    """The files of the journal `path`, one for each process that has written."""
    parts = [p for p in path.parent.glob("*") if p.stem == path.name and p.suffix[1:].isdecimal()]
    return sorted(parts, key=lambda part: int(part.suffix[1:]))


def refuse_running(parts: Iterable[Path]) -> None:
    """Raise `InputError` if another run is writing one of these parts of a journal."""
    for part in parts:
        with disk_failures_named(part), part.open("rb") as file:
            _lock(file, fcntl.LOCK_SH, part)


def remove_journal(path: Path) -> None:
    """Delete the journal `path`, if there is one; `InputError` if another run is writing it."""
    refuse_running(journal_parts(path))
    for part in journal_parts(path):
        part.unlink(missing_ok=True)


def check_journal(path: Path, settings: dict) -> None:
    """Raise `InputError` if the journal `path` is damaged or belongs to other settings."""
    for part in journal_parts(path):
        if not _is_bare(part):
            _read_part(part, settings)


def _is_bare(part: Path) -> bool:
    """Whether a part holds settings alone, of a run that failed before its first piece."""
    lines = part.read_bytes().splitlines()
    with suppress(ValueError, RecursionError):
        return len(lines) == 1 and isinstance(json.loads(lines[0]), dict)
    return False


def _lock(file: Any, kind: int, part: Path) -> None:
    """Refuse a part that another run is writing; a file system without locks cannot tell."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another run is writing {relative(part)}; wait for it, or give each its own --shard"
        ) from None
    except OSError:
        pass


def _read_part(path: Path, settings: dict) -> tuple[list[Any], int]:
    """The pieces in one part, and the bytes up to the end of its last whole line."""
    with disk_failures_named(path):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # cut off by a kill
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
            if number == 1 and not isinstance(values[0], dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise InputError(
                f"the journal of unfinished work {relative(path)} is damaged in line {number}; "
                "remove it, or use --overwrite, to start again"
            ) from None
    if values:
        remedy = "use the same settings to go on, or --overwrite to start again"
        refuse_difference(f"the unfinished work in {relative(path)}", values[0], settings, remedy)
    return values[1:], sum(map(len, lines))
