"""What `augment.py` writes: the files in `data_aug/`, and the question-answer pairs in them."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import json_repair

from utils.files import hash_json, read_object, relative
from utils.forms import is_text, problems_in, raise_problems, read_records
from utils.layout import COUNTERFACTUAL, augmented_file, folder_name
from utils.metrics import answer_presence, normalize
from utils.questions import take_sample
from utils.recipe import DEFAULTS
from utils.running import InputError

HIT_FIELDS = ("id", "title", "score")  # of an entry whose passage an engine found
UNFINISHED = "unfinished"  # in the settings of texts that do not count any more
PAIR_FIELDS = ("question", "answer", "full_answer")
PAIRS = 3
MOST_CHARACTERS = {"question": 180, "answer": 80, "full_answer": 220}  # in a constrained list
# json_repair takes quadratic time on some nonsense, most of all on many quotes or brackets
REPAIRED_CHARACTERS = 10_000
REPAIRED_MARKS = 300


def model_keys(model: str) -> tuple[str, str]:
    """The keys of `model`'s rewrite and of its question-answer pairs in an entry of "augment".
    Raises `InputError` if `model` cannot be a folder name."""
    prefix = folder_name(model)
    return f"{prefix}_rewrite", f"{prefix}_qa"


def data_types_of(dataset: str, data_type: str | None, augment_model: str) -> list[str]:
    """The data types of `dataset` that have an augmented file, sorted, with "total" last.

    `data_type` selects that one alone; false passages (docs/evidence.md) count only if it names
    them. Of the released archive only the folder of `augment_model` counts. Raises `InputError` if
    there is none.
    """
    folder = augmented_file(dataset, "total").parent
    files = [*folder.glob("[!.]*.json"), *folder.glob(f"{folder_name(augment_model)}/[!.]*.json")]
    found = sorted({f.stem for f in files if f.is_file()}, key=lambda name: (name == "total", name))
    plain = [name for name in found if not name.endswith(COUNTERFACTUAL)] or found
    chosen = [name for name in found if name == folder_name(data_type)] if data_type else plain
    if not chosen:
        missing = f"data type {data_type!r}" if data_type else "any data type"
        raise InputError(
            f"{relative(folder)} has no augmented file of {missing} (it has "
            f"{', '.join(found) or 'none'}); run {_augment_command(dataset, augment_model)}"
        )
    return chosen


def answers_rules(dataset: str, data_type: str) -> dict[str, str]:
    """The `--answers` of the models that wrote into an augmented file, by their settings' files."""
    folder, name = augmented_file(dataset, data_type).parent, folder_name(data_type)
    files = {file.name: file for file in sorted(folder.glob(f".{name}.*.settings"))}
    read = {name: read_object(file, "the settings file") for name, file in files.items()}
    return {n: (DEFAULTS | made)["answers"] for n, made in read.items() if UNFINISHED not in made}


def refuse_other_answers(dataset: str, questions: dict, model: str, answers: str) -> None:
    """Raise `InputError` if another model's texts are beside other right answers than `answers`."""
    model = folder_name(model)
    for data_type in questions:
        for name, rule in answers_rules(dataset, data_type).items():
            if rule != answers and name != f".{folder_name(data_type)}.{model}.settings":
                path = relative(augmented_file(dataset, data_type))
                raise InputError(
                    f"{path} was made with answers = {rule!r} by another model ({name}), but this "
                    f"run has {answers!r}; use --answers {rule}, or move the file away"
                )


def read_sample(
    dataset: str, data_type: str | None, augment_model: str, sample: int
) -> dict[str, list[dict]]:
    """The first `sample` augmented records (-1: all) of each data type, or of `data_type` alone.
    See `read_augmented` for the records. Raises `InputError` if there is none."""
    names = data_types_of(dataset, data_type, augment_model)
    return take_sample({n: read_augmented(dataset, n, augment_model) for n in names}, sample)


def texts_hash(records: list[dict]) -> str:
    """A hash of what answers depend on: questions, passages and texts, not how they were found."""
    hashed = []
    for record in records:
        entries = [
            {key: value for key, value in entry.items() if key not in HIT_FIELDS}
            for entry in record["augment"]
        ]
        hashed.append({**record, "augment": entries})
    return hash_json(hashed)


def read_augmented(dataset: str, data_type: str, augment_model: str) -> list[dict]:
    """The records of one data type, with the passages that `augment_model` has worked on.

    They are in `data_aug/{dataset}/{data_type}.json` or, as the released archive has them, in
    `data_aug/{dataset}/{model}/{data_type}.json`. Each entry of a record's "augment" has `pid`,
    `passage`, `rewrite` (text) and `qa` (a list of `{"question", "answer", "full_answer"}`), and
    `id`, `title` and `score` if it was found by an engine and not by commit 4200079 or before.
    "augment" is an empty list if the model has not come to that record yet. "passages" are those of
    this model, whatever others have added. A record whose "question" is None has no "answer": it is
    a passage of a corpus (`augment.py --passages`), in the index's order.
    Raises `InputError` if there is no file, no work of this model, or a broken record.
    """
    model = folder_name(augment_model)
    own = augmented_file(dataset, data_type)
    present: set[str] = set()
    for file in (own, own.parent / model / own.name):
        records = read_augmented_file(file) if file.is_file() else []
        keys = {k for record in records for entry in record["augment"] for k in entry}
        present |= {key.removesuffix("_qa") for key in keys if key.endswith("_qa")}
        if model in present:
            return [_of_model(record, model) for record in records]
    raise InputError(
        f"{relative(own)} does not exist or holds no work of model {model!r} (it has that of "
        f"{', '.join(sorted(present)) or 'none'}); choose with --data_type and --augment_model, or "
        f"run {_augment_command(dataset, augment_model)}"
    )


def _augment_command(dataset: str, model: str) -> str:
    return f"python src/augment.py --model_name {model} --dataset {dataset} --data_path PATH"


def _of_model(record: dict, model: str) -> dict:
    """`record` with the passages that `model` has finished, without its name in the keys."""
    rewrite_key, pairs_key = model_keys(model)
    entries = [
        {key: entry[key] for key in ("pid", "passage", *HIT_FIELDS) if key in entry}
        | {"rewrite": entry[rewrite_key], "qa": entry[pairs_key]}
        for entry in record["augment"]
        if rewrite_key in entry and pairs_key in entry
    ]
    return {**record, "passages": [entry["passage"] for entry in entries], "augment": entries}


def read_augmented_file(path: Path) -> list[dict]:
    """The checked records of the augmented file at `path`, with the texts of all models.

    A bare total.json of the released archive is filled from its neighbours. Raises `InputError` if
    there is no file or a record is broken.
    """
    records = read_records(path)
    if path.stem == "total" and not any("augment" in record for record in records):
        records = _fill_from_types(records, path)
    problems = (p for i, r in enumerate(records) for p in _problems(r, f"record {i}"))
    raise_problems(path, problems, "correct these, or delete the file and run augment.py again")
    return records


def _fill_from_types(records: list[dict], path: Path) -> list[dict]:
    """The records of the bare `path`, each with the augment of the same question in a type's file.
    A question that no type's file holds is left out, and their number is reported."""
    types = {str(record.get("type")) for record in records}
    files = [file for file in sorted(path.parent.glob("[!.]*.json")) if file.stem in types]
    known: dict[str, dict] = {}  # by question, and by id and question
    for record in [record for file in files for record in read_augmented_file(file)]:
        known.setdefault(record["question"], record)
        known[str([record["test_id"], record["question"]])] = record
    filled = []
    for record in records:
        names = str([record.get("test_id"), record.get("question")]), record.get("question")
        filled += [{**known[name], **record} for name in map(str, names) if name in known][:1]
    if len(filled) < len(records):
        print(
            f"{relative(path)}: {len(records) - len(filled)} of {len(records)} questions are left "
            "out, the files of the single types do not hold them",
            file=sys.stderr,
        )
    return filled or records


def _problems(record: dict, place: str) -> Iterator[str]:
    """What is wrong in a record of an augmented file; the answers in it become texts in place."""
    answer = [is_text] if isinstance(record.get("answer"), list) else is_text
    form = {"test_id": int, "question": str, "answer": answer, "augment": list}
    if record.get("question", "") is None:  # a passage of a corpus
        form = {"test_id": int, "question": object, "passages": [str], "augment": list}
    yield from problems_in(record, form, place)
    augment = record.get("augment")
    for number, entry in enumerate(augment if isinstance(augment, list) else []):
        form = {"pid": int, "passage": str}
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if key == "score":
                form[key] = (int, float)
            elif key.endswith("_rewrite"):
                form[key] = str
            elif key.endswith("_qa"):
                form[key] = [dict.fromkeys(PAIR_FIELDS, str)]
                for pair in value if isinstance(value, list) else []:
                    _answers_to_text(pair)
        where = f"{place}: augment[{number}]"
        yield from problems_in(entry, form, where, ".")
        pid = entry.get("pid") if isinstance(entry, dict) else None
        if isinstance(pid, int) and pid > 10**9:  # it names a folder
            yield f"{where}.pid has more than 9 digits"


def _answers_to_text(pair: Any) -> None:
    """Make lists, numbers and null among a pair's answers texts, as a new file has them."""
    for field in {"answer", "full_answer"} & set(pair if isinstance(pair, dict) else ()):
        value = pair[field]
        if value is None:
            pair[field] = "Unknown"
        elif isinstance(value, list):
            pair[field] = ", ".join(map(str, value))
        elif type(value) in (int, float):
            pair[field] = str(value)


def list_schema(order: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of a list of three pairs with their fields in this order, for servers."""
    texts = {
        field: {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS[field]}
        for field in order
    }
    pair = {"type": "object", "properties": texts, "required": list(order)}
    pair["additionalProperties"] = False
    return {"type": "array", "items": pair, "minItems": PAIRS, "maxItems": PAIRS}


def in_passage(answer: str, passage: str) -> bool:
    """Whether `answer` occurs in `passage`, both normalised as the metrics do: as whole words, or
    if it is not ASCII anywhere, as many languages put no spaces between words."""
    if answer_presence(passage, answer):
        return True
    words = normalize(answer)
    return not words.isascii() and words in normalize(passage)


def parse_pairs(text: str) -> list[dict[str, str]] | None:
    """The first three valid pairs of the question-answer list in a model's answer, else None."""
    pairs = read_pairs(text)
    return pairs if len(pairs) == PAIRS else None


def read_pairs(text: str) -> list[dict[str, str]]:
    """The valid pairs of the question-answer list in a model's answer, three at most.

    The list may be among other text, be wrapped in an object, cut off or slightly broken
    (json_repair mends it); invalid elements are passed over. A pair has exactly "question",
    "answer" and "full_answer", each a stripped text that is not empty. Never raises.
    """
    try:
        value = json_repair.loads(_list_text(text))
    except Exception:  # json_repair documents no errors; nonsense makes it raise several
        return []
    pairs: list[dict[str, str]] = []
    waiting = [value]
    while waiting and len(pairs) < PAIRS:
        value = waiting.pop()
        if isinstance(value, dict) and set(PAIR_FIELDS) <= set(value):
            pairs += _valid_pair(value)
        elif isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            waiting += reversed(list(inner))  # so that the first is popped first
    return pairs[:PAIRS]


def _list_text(text: str) -> str:
    """The part of `text` to repair: from the first list of objects, or else the first object."""
    match = re.search(r"\[\s*(?=\{)", text) or re.search(r"(?=\{)", text)
    if match is None:
        return "[]"
    part = "[" + text[match.end() :][:REPAIRED_CHARACTERS]
    marks = [mark.start() for mark in re.finditer(r"[][(){}\"'“”`]", part)]
    return part[: marks[REPAIRED_MARKS]] if len(marks) > REPAIRED_MARKS else part


def _valid_pair(raw: dict) -> list[dict[str, str]]:
    """`raw` as a question-answer pair alone in a list, which is empty if it is not valid."""
    pair = {field: raw[field] for field in PAIR_FIELDS}
    _answers_to_text(pair)
    if not all(isinstance(value, str) for value in pair.values()):
        return []
    # half a surrogate pair ("\ud83d") cannot be written to a file
    pair = {field: value.encode(errors="ignore").decode().strip() for field, value in pair.items()}
    return [pair] if all(pair.values()) else []
