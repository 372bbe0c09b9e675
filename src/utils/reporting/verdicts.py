"""A judge's verdicts on a result's answers: `judge.json` beside `predict.json`."""

import re
from contextlib import suppress
from pathlib import Path

from utils.files import hash_json, read_object, relative
from utils.running import InputError
from utils.thoughts import without_thoughts

VERDICTS = "judge.json"


def verdict_in(text: str) -> bool | None:
    """The first yes or no that a judge's `text` says after its thoughts, None without one."""
    found = re.search(r"\b(yes|no)\b", without_thoughts(text), re.IGNORECASE)
    return found and found[0].lower() == "yes"


def judged(rows: list[dict]) -> str:
    """A hash of what verdicts on these rows of predict.json depend on."""
    return hash_json([[row["question"], row["answer"], row["text"]] for row in rows])


def verdicts_of(made: dict, rows: list[dict], path: Path) -> list[dict]:
    """The verdicts in a `judge.json`, one for each of `rows`; `InputError` if they are not."""
    verdicts = made.get("verdicts")
    with suppress(AttributeError, KeyError, TypeError):
        if len(verdicts) == len(rows) and all(
            one["right"] is verdict_in(one["text"]) for one in verdicts
        ):
            return verdicts
    raise InputError(f"{relative(path)} is damaged; judge again: judge.py with --overwrite")


def read_verdicts(folder: Path, rows: list[dict]) -> list[bool | None]:
    """The verdict on each of the `rows` of the result in `folder`; [] if it was not judged. Raises
    `InputError` if they are damaged or were given on other answers."""
    path = folder / VERDICTS
    if not path.exists():
        return []
    made = read_object(path, "the verdicts")
    if made.get("judged") != judged(rows):
        raise InputError(
            f"{relative(path)} is about other answers than predict.json; judge.py with --overwrite"
        )
    return [one["right"] for one in verdicts_of(made, rows, path)]
