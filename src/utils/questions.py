"""Raw data sets -> question records.

A question record is `{"test_id", "question", "answer"}` (`answer`: a string, or a list of strings
of which any is right), with `"qid"`, `"type"` and `"golden_passages"` if the raw data has them.
`test_id` is the record's index in the list of its data type, so it is unique within a file.

Another raw data set is one loader and one line in `DATASETS`.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import parse_json, read_json, read_text, relative
from utils.running import InputError

SHOWN_PROBLEMS = 5
QUESTION_FORMAT = "a question must be a text, an answer a text or a list of texts, none of it empty"
FIELDS = ("question", "answer", "qid", "type", "golden_passages")


@dataclass(frozen=True)
class DataSet:
    """A published data set: its raw files, and how they become question records.

    `load` takes the paths of `files`, the questions' first, and gives the records in their order,
    without `test_id`. `types` are the values of "type" that are evaluated each alone, beside all
    together ("total"). With `evidence` a record also has "evidence": a list of the texts that
    support its answer, of which the warm-up makes data with reasoning.
    """

    source: str  # the URL to download it from
    files: tuple[str, ...]
    load: Callable[..., list[dict]]
    types: tuple[str, ...] = ()
    evidence: bool = False


def _load_multihop(questions: Path, aliases: Path | None = None) -> list[dict]:
    """2wikimultihopqa or hotpotqa, which share one record shape."""
    lines = read_text(aliases, "the alias file").split("\n") if aliases else []
    entries = [parse_json(line, f"{aliases}: a line") for line in lines if line.strip()]
    names = {str(entry["Q_id"]): _texts(entry["aliases"]) for entry in entries}
    records = []
    for raw in read_records(questions):
        support = list(_support(raw))
        record = {
            "question": raw.get("question"),
            "answer": names.get(str(raw.get("answer_id"))) or raw.get("answer"),
            "qid": raw.get("_id"),
            "type": raw.get("type"),
            "golden_passages": [whole for whole, _ in support if whole],
            "evidence": [sentences for _, sentences in support if sentences],
        }
        records.append({field: value for field, value in record.items() if value is not None})
    return records


def _support(raw: dict) -> Iterator[tuple[str, str]]:
    """Each supporting paragraph of a record: its text, and its supporting sentences alone.

    They come in the order of their first mention, `title: sentence …` the latter. A few facts of
    the raw data have a title or a place that the context does not: these give "".
    """
    paragraphs = dict(raw.get("context", []))
    wanted: dict[str, list] = {}  # title -> places of its supporting sentences
    for title, place in raw.get("supporting_facts", []):
        wanted.setdefault(title, []).append(place)
    for title, places in wanted.items():
        sentences = paragraphs.get(title, [])
        chosen = [s.strip() for place, s in enumerate(sentences) if place in places and s.strip()]
        whole = " ".join(sentence.strip() for sentence in _texts(sentences))
        yield whole, f"{title}: {' '.join(chosen)}" if chosen else ""


def _texts(values: list) -> list[str]:
    """The texts in a list, without blank ones and repetitions, in their order."""
    return list(dict.fromkeys(filter(is_text, values)))


def _load_popqa(file: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is below some alias lists
    text = io.StringIO(read_text(file, "the data set"), newline="")
    records = []
    for index, row in enumerate(csv.DictReader(text, dialect="excel-tab", strict=True)):
        aliases = parse_json(row["o_aliases"] or "[]", f"record {index}: o_aliases")
        record = {"question": row["question"], "answer": _texts([row["obj"], *aliases])}
        records.append({**record, "qid": row["id"]} if row.get("id") else record)
    return records


def _load_complexwebquestions(file: Path) -> list[dict]:
    records = []
    for raw in read_records(file):
        named = [[one.get("answer"), *(one.get("aliases") or [])] for one in raw["answers"]]
        record = {"question": raw.get("question"), "answer": _texts(sum(named, []))}
        if record["answer"]:  # an answer without a name cannot be scored
            records.append({**record, "qid": raw["ID"]} if "ID" in raw else record)
    return records


DATASETS = {
    "2wikimultihopqa": DataSet(
        "https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?e=1",
        ("dev.json", "id_aliases.json"),
        _load_multihop,
        types=("comparison", "bridge_comparison", "inference", "compositional"),
        evidence=True,
    ),
    "hotpotqa": DataSet(
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        ("hotpot_dev_distractor_v1.json",),
        _load_multihop,
        types=("bridge", "comparison"),
        evidence=True,
    ),
    "popqa": DataSet(
        "https://raw.githubusercontent.com/AlexTMallen/adaptive-retrieval/main/data/popQA.tsv",
        ("popQA.tsv",),
        _load_popqa,
    ),
    "complexwebquestions": DataSet(
        "https://www.tau-nlp.sites.tau.ac.il/compwebq",
        ("ComplexWebQuestions_dev.json",),
        _load_complexwebquestions,
    ),
}


def load_questions(dataset: str, data_path: str | Path) -> dict[str, list[dict]]:
    """The question records of each data type of `dataset`, all in the data set's own order.

    `data_path` is the folder with the raw files for a data set in `DATASETS`. Those with types give
    each type that occurs and, last, "total" with all questions; the others "total" alone. For any
    other name it is a JSON file: a list of records, whose data type is the file's stem, or an
    object `{data_type: list of records}`.
    Raises `InputError` if a file is missing or a record is broken.
    """
    if dataset not in DATASETS:
        return _load_custom(dataset, Path(data_path))
    records = _load_published(dataset, Path(data_path))
    for record in records:
        record.pop("evidence", None)
    typed = {t: [r for r in records if r.get("type") == t] for t in DATASETS[dataset].types}
    return {
        name: [{"test_id": index, **record} for index, record in enumerate(chosen)]
        for name, chosen in {**typed, "total": records}.items()
        if chosen
    }


def load_supporting_sentences(dataset: str, data_path: str | Path) -> list[list[str]]:
    """The "evidence" of each question of "total", in its order. Raises as `load_questions`."""
    return [record["evidence"] for record in _load_published(dataset, Path(data_path))]


def load_sample(
    dataset: str, data_path: str | Path, data_type: str | None, sample: int
) -> dict[str, list[dict]]:
    """The first `sample` questions (-1: all) of each data type, or of `data_type` alone. Raises
    `InputError` as `load_questions`, and if there is no such data type."""
    questions = load_questions(dataset, data_path)
    if data_type and data_type not in questions:
        raise InputError(f"--data_type {data_type}: {dataset} has {', '.join(questions)}")
    return take_sample({data_type: questions[data_type]} if data_type else questions, sample)


def take_sample(records: dict[str, list[dict]], sample: int) -> dict[str, list[dict]]:
    """The first `sample` records of each data type; -1 takes all."""
    return {name: rows[: None if sample == -1 else sample] for name, rows in records.items()}


def _load_published(dataset: str, folder: Path) -> list[dict]:
    """The checked records of a data set in `DATASETS`, in its own order."""
    data = DATASETS[dataset]
    paths = [folder / name for name in data.files]
    try:
        try:
            records = data.load(*paths)
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error):
            raise InputError(f"a file in {relative(folder)} is damaged or another one") from None
        if not records:
            raise InputError(f"{relative(paths[0])} holds no question")
        raise_problems(paths[0], _question_problems(records))
    except InputError as error:
        raise InputError(
            f"{error}; --data_path must be the folder with {' and '.join(data.files)}: download "
            f"it again from {data.source}"
        ) from None
    return records


def _load_custom(dataset: str, path: Path) -> dict[str, list[dict]]:
    if path.is_dir():
        raise InputError(
            f"--data_path {relative(path)} is a folder, but data set {dataset!r} is none of "
            f"{', '.join(DATASETS)}; give its JSON file"
        )
    value = read_json(path, "the data set")
    lists = value if isinstance(value, dict) and value else {path.stem: value}
    problems = []
    for data_type, records in lists.items():
        if isinstance(records, list) and records:
            problems += [f"{data_type}, {problem}" for problem in _question_problems(records)]
        else:
            problems.append(f"{data_type} is {kind_of(records)}, not a list of records")
    raise_problems(path, problems)
    return {
        data_type: [
            {"test_id": index, **{name: record[name] for name in FIELDS if name in record}}
            for index, record in enumerate(records)
        ]
        for data_type, records in lists.items()
    }


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for an error: "a text", "an empty list", "null"."""
    kinds = {str: "a text", list: "a list", dict: "an object", bool: "a truth value"}
    kind = "null" if value is None else kinds.get(type(value), "a number")
    empty = value in ([], {}) or (isinstance(value, str) and not value.strip())
    return f"an empty {kind.split()[1]}" if empty else kind


def is_text(value: Any) -> bool:
    """Whether a JSON value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


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


def _question_problems(records: list) -> Iterator[str]:
    """What is not as a question record needs it."""
    for index, record in enumerate(records):
        form: dict[str, Any] = {"question": is_text, "answer": is_text}
        if isinstance(record, dict):
            form["answer"] = [is_text] if isinstance(record.get("answer"), list) else is_text
            if record.get("golden_passages", []) != []:
                form["golden_passages"] = [is_text]
        yield from problems_in(record, form, f"record {index}")


def read_records(path: Path) -> list[dict]:
    """The objects listed in a JSON file. Raises `InputError` if it does not hold such a list."""
    records = read_json(path, "the data set")
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
