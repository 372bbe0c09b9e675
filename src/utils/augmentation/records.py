"""What `augment.py` writes: the files in `data_aug/`, and the question-answer pairs in them."""

import re
import sys
from pathlib import Path
from typing import Any

import json_repair

from utils.files import relative
from utils.layout import augmented_file, folder_name
from utils.questions import kind_of, raise_problems, read_records, take_sample
from utils.running import InputError

PAIR_FIELDS = ("question", "answer", "full_answer")
PAIRS = 3
# json_repair takes quadratic time on some nonsense, most of all on many quotes or brackets
REPAIRED_CHARACTERS = 10_000
REPAIRED_MARKS = 300


def model_keys(model: str) -> tuple[str, str]:
    """The keys of `model`'s rewrite and of its question-answer pairs in an entry of "augment".

    Raises `InputError` where `model` cannot be a folder name.
    """
    prefix = folder_name(model)
    return f"{prefix}_rewrite", f"{prefix}_qa"


def data_types_of(
    dataset: str, data_type: str | None = None, augment_model: str | None = None
) -> list[str]:
    """The data types of `dataset` that have an augmented file, sorted, with "total" last.

    `data_type` selects that one alone; `augment_model` leaves out the released archive's folders of
    other models. Raises `InputError` where there is none.
    """
    folder = augmented_file(dataset, "total").parent
    subfolder = folder_name(augment_model) if augment_model else "[!.]*"
    files = [*folder.glob("[!.]*.json"), *folder.glob(f"{subfolder}/[!.]*.json")]
    found = {file.stem for file in files if file.is_file()}
    chosen = found if data_type is None else found & {folder_name(data_type)}
    if not chosen:
        missing = f"data type {data_type!r}" if data_type else "any data type"
        there = f" (it has {', '.join(sorted(found))})" if found else ""
        raise InputError(
            f"{relative(folder)} has no augmented file of {missing}{there}; run "
            f"{_augment_command(dataset, augment_model)}"
        )
    return sorted(chosen, key=lambda name: (name == "total", name))


def read_sample(
    dataset: str, data_type: str | None, augment_model: str, sample: int
) -> dict[str, list[dict]]:
    """The first `sample` augmented records (-1: all) of each data type, or of `data_type` alone.

    See `read_augmented` for the records. Raises `InputError` where there is none.
    """
    return take_sample(
        {
            name: read_augmented(dataset, name, augment_model)
            for name in data_types_of(dataset, data_type, augment_model)
        },
        sample,
    )


def fewer_than_asked(records: dict[str, list[dict]], sample: int) -> str:
    """A sentence where a data type in `records` has fewer questions than `--sample`, else ""."""
    short = [f"{name} has {len(rows)}" for name, rows in records.items() if len(rows) < sample]
    return f"fewer questions than --sample {sample}: {', '.join(short)}" if short else ""


def read_augmented(dataset: str, data_type: str, augment_model: str) -> list[dict]:
    """The records of one data type, with the passages that `augment_model` has worked on.

    They stand in `data_aug/{dataset}/{data_type}.json` or, as the released archive has them, in
    `data_aug/{dataset}/{model}/{data_type}.json`. Each entry of a record's "augment" has `pid`,
    `passage`, `rewrite` (text) and `qa` (a list of `{"question", "answer", "full_answer"}`);
    it is an empty list where the model has not come to that record yet. "passages" are those of
    this model, whatever others have added.
    Raises `InputError` where there is no file, no work of this model, or a broken record.
    """
    model = folder_name(augment_model)
    own = augmented_file(dataset, data_type)
    files = [file for file in (own, own.parent / model / own.name) if file.is_file()]
    present: set[str] = set()
    for file in files:
        records = _read_augmented_file(file)
        keys = {k for record in records for entry in record["augment"] for k in entry}
        present |= {key.removesuffix("_qa") for key in keys if key.endswith("_qa")}
        chosen = [_of_model(record, model) for record in records]
        if any(record["augment"] for record in chosen):
            return chosen
    if files:
        problem = (
            f"{relative(own)} holds no work of model {model!r} (it has that of "
            f"{', '.join(sorted(present)) or 'none'}); choose with --augment_model"
        )
    else:
        problem = f"{relative(own)} does not exist; choose another --data_type"
    raise InputError(f"{problem}, or run {_augment_command(dataset, augment_model)}")


def _augment_command(dataset: str, augment_model: str | None) -> str:
    """The command that makes the files of `dataset`."""
    model = augment_model or "MODEL"
    return f"python src/augment.py --model_name {model} --dataset {dataset} --data_path PATH"


def _of_model(record: dict, model: str) -> dict:
    """`record` with the passages that `model` has finished, without its name in the keys."""
    rewrite_key, pairs_key = model_keys(model)
    entries = [
        {"pid": entry["pid"], "passage": entry["passage"]}
        | {"rewrite": entry[rewrite_key], "qa": entry[pairs_key]}
        for entry in record["augment"]
        if rewrite_key in entry and pairs_key in entry
    ]
    return {**record, "passages": [entry["passage"] for entry in entries], "augment": entries}


def _read_augmented_file(path: Path) -> list[dict]:
    """The checked records of an augmented file, a bare total.json filled from its neighbours."""
    records = read_records(path)
    if path.stem == "total" and not any("augment" in record for record in records):
        records = _fill_from_types(records, path)
    problems = [f"record {i}: {p}" for i, r in enumerate(records) for p in _augmented_problems(r)]
    raise_problems(path, problems, "correct these, or delete the file and run augment.py again")
    return records


def _fill_from_types(records: list[dict], path: Path) -> list[dict]:
    """The records of the bare `path`, each with the augment of the same question in a type's file.

    A question that no type's file holds is left out, and their number is reported.
    """
    types = {str(record["type"]) for record in records if "type" in record}
    same_question: dict[str, list[dict]] = {}
    for file in sorted(path.parent.glob("[!.]*.json")):
        if file != path and (file.stem in types or not types):
            for record in _read_augmented_file(file):
                same_question.setdefault(record["question"], []).append(record)
    filled = []
    for record in records:
        candidates = same_question.get(str(record.get("question")), [])
        same_id = [one for one in candidates if one["test_id"] == record.get("test_id")]
        if candidates:
            filled.append({**(same_id or candidates)[0], **record})
    if not filled:
        raise InputError(
            f"{relative(path)} has no passages, and no other file beside it holds its questions; "
            "extract the archive again"
        )
    if len(filled) < len(records):
        print(
            f"{relative(path)}: {len(records) - len(filled)} of {len(records)} questions are left "
            "out, the files of the single types do not hold them",
            file=sys.stderr,
        )
    return filled


# ------------------------------------------------------------------------------------------------
# A model's answer


def parse_pairs(text: str) -> list[dict[str, str]] | None:
    """The first three valid pairs of the question-answer list in a model's answer, else None.

    The list may stand among other text, be wrapped in an object, cut off or slightly broken
    (json_repair mends it); invalid elements are passed over. A pair has exactly "question",
    "answer" and "full_answer", each a stripped text that is not empty. Lists, numbers and null
    among the answers become texts. Never raises, and reads only so far from the
    list's beginning (`REPAIRED_CHARACTERS`, `REPAIRED_MARKS`).
    """
    try:
        value = json_repair.loads(_list_text(text))
    except Exception:  # json_repair documents no errors; nonsense makes it raise several
        return None
    pairs = []
    waiting = [value]
    while waiting and len(pairs) < PAIRS:
        value = waiting.pop()
        if isinstance(value, dict) and set(PAIR_FIELDS) <= set(value):
            pairs += _valid_pair(value)
        elif isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += reversed(list(inner))  # so that the first is popped first
    return pairs if len(pairs) == PAIRS else None


def _list_text(text: str) -> str:
    """The part of `text` to repair: from the first list of objects, or else the first object."""
    match = re.search(r"\[\s*(?=\{)", text) or re.search(r"(?=\{)", text)
    if match is None:
        return "[]"
    part = "[" + text[match.end() :][:REPAIRED_CHARACTERS]
    marks = [mark.start() for mark in re.finditer(r"[][(){}\"'“”`]", part)]
    return part[: marks[REPAIRED_MARKS]] if len(marks) > REPAIRED_MARKS else part


def _valid_pair(raw: dict) -> list[dict[str, str]]:
    """`raw` as a question-answer pair alone in a list, which is empty where it is not valid."""
    pair = {field: raw[field] for field in PAIR_FIELDS}
    _answers_to_text(pair)
    if not all(isinstance(value, str) for value in pair.values()):
        return []
    # half a surrogate pair ("\ud83d") cannot be written to a file
    pair = {field: value.encode(errors="ignore").decode().strip() for field, value in pair.items()}
    return [pair] if all(pair.values()) else []


# ------------------------------------------------------------------------------------------------
# Checks


def _augmented_problems(record: dict) -> list[str]:
    """What is wrong in a record of an augmented file; the answers in it become texts in place."""
    fields = {"test_id": int, "question": str, "answer": (str, list), "augment": list}
    problems = _wrong_fields(record, fields)
    answer = record.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    texts = bool(answers) and all(isinstance(one, str) and one.strip() for one in answers)
    if not problems and not texts:
        problems.append("answer has no text, or an empty one")
    augment = record.get("augment")
    for position, entry in enumerate(augment if isinstance(augment, list) else []):
        where = f"augment[{position}]"
        if not isinstance(entry, dict):
            problems.append(f"{where} is {kind_of(entry)}")
            continue
        fields = {"pid": int, "passage": str}
        fields |= {key: str for key in entry if key.endswith("_rewrite")}
        fields |= {key: list for key in entry if key.endswith("_qa")}
        problems += _wrong_fields(entry, fields, f"{where}.")
        for key in [key for key in entry if key.endswith("_qa") and isinstance(entry[key], list)]:
            if not entry[key]:
                problems.append(f"{where}.{key} is an empty list")
            for number, pair in enumerate(entry[key]):
                here = f"{where}.{key}[{number}]"
                if not isinstance(pair, dict):
                    problems.append(f"{here} is {kind_of(pair)}")
                    continue
                _answers_to_text(pair)
                texts = dict.fromkeys(PAIR_FIELDS, str)
                problems += _wrong_fields(pair, texts, f"{here}.")
    return problems


def _wrong_fields(record: dict, kinds: dict[str, Any], where: str = "") -> list[str]:
    """The fields of `record` that are missing or not of the type (or types) in `kinds`."""
    return [
        f"{where}{field} is {kind_of(record[field]) if field in record else 'missing'}"
        for field, kind in kinds.items()
        if not isinstance(record.get(field), kind)
    ]


def _answers_to_text(pair: dict) -> None:
    """Make lists, numbers and null among a QA pair's answers texts, as a new file has them."""
    for field in {"answer", "full_answer"} & set(pair):
        value = pair[field]
        if value is None:
            pair[field] = "Unknown"
        elif isinstance(value, list):
            pair[field] = ", ".join(str(part) for part in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            pair[field] = str(value)
