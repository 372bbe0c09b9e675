"""What a stage has done so far, one JSON line per finished piece, so that a killed run goes on.

A journal begins with a line that says which settings it belongs to. Each piece is appended when it
is finished; a last line that a kill cut off is dropped when the journal is opened again.
"""

import json
import os
from pathlib import Path
from typing import Any

from utils.paths import InputError, relative


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

    Raises `InputError` where the journal at `path` belongs to other settings than `settings`.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.items: list[Any] = []
        whole = 0  # bytes that end with a complete line
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            for number, line in enumerate(lines):
                try:
                    value = json.loads(line)
                except ValueError:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("r+b" if path.exists() else "w+b")
        self.file.truncate(whole)
        self.file.seek(whole)
        if whole == 0:
            self._write(settings)

    def _write(self, value: Any) -> None:
        self.file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
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
