"""What a stage has done so far, one JSON line per finished piece, so that a killed run goes on.

A journal begins with a line that says which settings it belongs to. Each piece is appended when it
is finished; a last line that a kill cut off is dropped when the journal is opened again.
"""

import json
import os
from pathlib import Path
from typing import Any

from utils.paths import InputError, disk_failures_named, relative


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
    """The finished pieces of one piece of work; `items` holds them in the order of their writing.

    Raises `InputError` where the journal at `path` belongs to other settings than `settings`, where
    it is damaged by more than a cut-off last line, and where the disk is full or refuses.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.items: list[Any] = []
        whole = 0  # bytes that end with a complete line
        lines = self._lines()
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
                self.items.append(value)
            whole += len(line)
        with disk_failures_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self.file.truncate(whole)
            self.file.seek(whole)
        if whole == 0:
            self._write(settings)

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        try:
            return self.path.read_bytes().splitlines(keepends=True)
        except OSError as error:
            raise InputError(
                f"the journal of unfinished work {relative(self.path)} cannot be read "
                f"({error.strerror}); remove it, or use --overwrite, to start anew"
            ) from None

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
        """Delete the journal: its content stands in the stage's result now."""
        self.close()
        self.path.unlink(missing_ok=True)
