"""The shapes of JSON values that users give: what is not as it must be is named by its place."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.files import parse_json, read_json, read_text, relative
from utils.running import InputError

SHOWN_PROBLEMS = 5
QUESTION_FORMAT = "a question must be a text, an answer a text or a list of texts, none of it empty"


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for an error: "a text", "an empty list", "null"."""
    kinds = {str: "a text", list: "a list", dict: "an object", bool: "a truth value"}
    kind = "null" if value is None else kinds.get(type(value), "a number")
    empty = value in ([], {}) or (isinstance(value, str) and not value.strip())
    return f"an empty {kind.split()[1]}" if empty else kind


def is_text(value: Any) -> bool:
    """Whether a JSON value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def texts(values: list) -> list[str]:
    """The texts in a list, without blank ones and repetitions, in their order. Raises `TypeError`
    if it is not a list."""
    if not isinstance(values, list):
        raise TypeError(values)
    return list(dict.fromkeys(filter(is_text, values)))


def problems_in(value: Any, form: Any, place: str, gap: str = ": ") -> Iterator[str]:
    """The places in a JSON value that are not as `form` says: "record 2: answer is null".

    A form is a type, a tuple of types or `is_text`; `{field: its form}` for what an object must
    have; `[form]` for the elements of a list that is not empty.
    """
    if isinstance(form, dict) and isinstance(value, dict):
        for field, inner in form.items():
            if field in value:
                yield from problems_in(value[field], inner, f"{place}{gap}{field}", ".")
            else:
                yield f"{place}{gap}{field} is missing"
    elif isinstance(form, list) and isinstance(value, list) and value:
        for number, element in enumerate(value):
            yield from problems_in(element, form[0], f"{place}[{number}]", ".")
    elif form is is_text:
        if not is_text(value):
            yield f"{place} is {kind_of(value)}"
    elif isinstance(form, dict | list) or not isinstance(value, form):
        yield f"{place} is {kind_of(value)}"


def read_lines(path: Path, what: str) -> list[Any]:
    """The values of a file of JSON lines; blank ones are passed over. `what` names it in errors."""
    lines = enumerate(read_text(path, what).split("\n"), start=1)
    return [parse_json(line, f"line {n} of {relative(path)}") for n, line in lines if line.strip()]


def read_records(path: Path) -> list[dict]:
    """The objects listed in a JSON file, or on the lines of a `.jsonl` file. Raises `InputError` if
    it does not hold such a list."""
    read = read_lines if path.suffix == ".jsonl" else read_json
    records = read(path, "the data set")
    if not isinstance(records, list) or not records:
        raise InputError(f"{relative(path)} holds {kind_of(records)}, not a list of records")
    problems = (
        p for i, record in enumerate(records) for p in problems_in(record, {}, f"record {i}")
    )
    raise_problems(path, problems, "each record must be an object")
    return records


def raise_problems(path: Path, problems: Iterable[str], remedy: str = QUESTION_FORMAT) -> None:
    """Raise one `InputError` for all `problems`, the first few in words, the rest counted. It ends
    with `remedy`. Without problems nothing happens."""
    if problems := list(problems):
        shown, rest = problems[:SHOWN_PROBLEMS], len(problems) - SHOWN_PROBLEMS
        more = f"; and {rest} more" if rest > 0 else ""
        raise InputError(f"{relative(path)} cannot be used: {'; '.join(shown)}{more}; {remedy}")
