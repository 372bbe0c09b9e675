"""Raw data sets -> question records.

A question record is `{"test_id", "question", "answer"}` (`answer`: a string, or a list of strings
of which any is right), with `"qid"`, `"type"` and `"golden_passages"` if the raw data has them.
`test_id` is the record's index in the list of its data type, so it is unique within a file.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.datasets import DATASETS, DataSet
from utils.files import missing, read_json, relative
from utils.forms import is_text, kind_of, problems_in, raise_problems
from utils.layout import dataset_folder, folder_name
from utils.running import InputError

ANSWERS = ("published", "all")  # which right answers a published data set gives
FIELDS = ("question", "answer", "qid", "type", "golden_passages")


def load_questions(
    dataset: str, data_path: str | Path, answers: str = "published"
) -> dict[str, list[dict]]:
    """The question records of each data type of `dataset`, all in the data set's own order.

    `data_path` is the folder with the raw files for a data set in `DATASETS`. Those with types give
    each type that occurs and, last, "total" with all questions; the others "total" alone. For any
    other name it is a JSON file: a list of records, whose data type is the file's stem, or an
    object `{data_type: list of records}`. `answers` is one of `ANSWERS`; it says on stderr how
    many records are left out.
    Raises `InputError` if a file is missing or a record is broken.
    """
    if dataset not in DATASETS:
        return _load_custom(dataset, Path(data_path))
    records, remarks = _load_published(dataset, Path(data_path))
    for remark in remarks:
        print(remark, file=sys.stderr)
    for record in records:
        record.pop("evidence", None)
        every = record.pop("all_answers", None)
        record["answer"] = every if every and answers == "all" else record["answer"]
    typed = {t: [r for r in records if r.get("type") == t] for t in DATASETS[dataset].types}
    return {
        name: [{"test_id": index, **record} for index, record in enumerate(chosen)]
        for name, chosen in {**typed, "total": records}.items()
        if chosen
    }


def load_supporting_sentences(dataset: str, data_path: str | Path) -> list[list[str]]:
    """The "evidence" of each question of "total", in its order. Raises as `load_questions`."""
    return [record["evidence"] for record in _load_published(dataset, Path(data_path))[0]]


def load_contexts(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """The data set whose files are in `folder`, and title and text of the different paragraphs that
    its records show beside their questions, in the order of their first occurrence.

    Raises `InputError` unless the folder holds exactly one data set with such contexts, if a file
    of it is damaged, and if a record has no context.
    """
    known = {name: data for name, data in DATASETS.items() if data.contexts}
    held = [n for n, data in DATASETS.items() if all((folder / f).is_file() for f in data.files)]
    chosen = [name for name in held if name in known]
    if len(chosen) != 1:
        holds = f"holds {' and '.join(chosen or held) or 'no data set'}"
        files = [f"{' and '.join(data.files)} ({name})" for name, data in known.items()]
        raise InputError(
            f"--from_contexts {relative(folder)} {holds if folder.exists() else missing(folder)}; "
            f"give a folder that holds one data set with contexts: {', or '.join(files)}"
        )
    data = known[chosen[0]]
    with _raw_faults_named(data, folder, "--from_contexts"):
        return chosen[0], list(dict.fromkeys(data.contexts(*(folder / f for f in data.files))))


def load_sample(
    dataset: str,
    data_path: str | Path,
    data_type: str | None,
    sample: int,
    answers: str = "published",
) -> dict[str, list[dict]]:
    """The first `sample` questions (-1: all) of each data type, or of `data_type` alone. Raises
    `InputError` as `load_questions`, and if there is no such data type."""
    questions = load_questions(dataset, data_path, answers)
    if data_type and data_type not in questions:
        raise InputError(f"--data_type {data_type}: {dataset} has {', '.join(questions)}")
    return take_sample({data_type: questions[data_type]} if data_type else questions, sample)


def take_sample(records: dict[str, list[dict]], sample: int) -> dict[str, list[dict]]:
    """The first `sample` records of each data type; -1 takes all."""
    return {name: rows[: None if sample == -1 else sample] for name, rows in records.items()}


def _load_published(dataset: str, folder: Path) -> tuple[list[dict], list[str]]:
    """The checked records of a data set in `DATASETS`, in its own order, and what was left out."""
    data = DATASETS[dataset]
    paths = [folder / name for name in data.files]
    with _raw_faults_named(data, folder, "--data_path"):
        read = data.load(*paths)
        answered = {i: r for i, r in enumerate(read) if not _is_blank(r.get("answer"))}
        if not answered:
            raise InputError(f"{relative(paths[0])} holds no question with an answer")
        raise_problems(paths[0], _question_problems(answered.items()))
    records = list(answered.values())
    left_out = f"of {len(read)} questions have no answer and are left out"
    remarks = Counter({left_out: len(read) - len(records)})
    for record in records:
        if remark := record.pop("remark", "").format(source=data.source):
            remarks[f"of {len(records)} questions {remark}"] += 1
    place = relative(paths[0])
    return records, [f"{place}: {number} {what}" for what, number in remarks.items() if number]


@contextmanager
def _raw_faults_named(data: DataSet, folder: Path, flag: str) -> Iterator[None]:
    """Make an `InputError` with the remedy of what reading a data set's raw files raises."""
    try:
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error, RecursionError):
            raise InputError(f"a file in {relative(folder)} is damaged or another one") from None
    except InputError as error:
        raise InputError(
            f"{error}; {flag} must be the folder with {' and '.join(data.files)}: download it "
            f"again from {data.source}"
        ) from None


def _is_blank(answer: Any) -> bool:
    """Whether a raw answer is nothing to compare with, rather than something wrong."""
    parts = answer if isinstance(answer, list) else [answer]
    return all(part is None or (isinstance(part, str) and not part.strip()) for part in parts)


def _load_custom(dataset: str, path: Path) -> dict[str, list[dict]]:
    dataset_folder(dataset)  # refuses a name that no stage could use
    if path.is_dir():
        raise InputError(
            f"--data_path {relative(path)} is a folder, but data set {dataset!r} is none of "
            f"{', '.join(DATASETS)}; give its JSON file"
        )
    value = read_json(path, "the data set")
    if isinstance(value, dict) and is_text(value.get("question")):
        raise InputError(f"{relative(path)} holds one record; put it into a list: [...]")
    lists = value if isinstance(value, dict) and value else {path.stem: value}
    problems, folders = [], {}
    for data_type, records in lists.items():
        if (other := folders.setdefault(folder_name(data_type), data_type)) != data_type:
            both = f"{relative(path)}: the data types {other!r} and {data_type!r}"
            raise InputError(f"{both} would have one folder; rename one")
        if isinstance(records, list) and records:
            found = _question_problems(enumerate(records))
            problems += [f"{data_type}, {problem}" for problem in found]
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


def _question_problems(records: Iterable[tuple[int, Any]]) -> Iterator[str]:
    """What is not as a question record needs it, in records with their indices."""
    for index, record in records:
        form: dict[str, Any] = {"question": is_text, "answer": is_text}
        if isinstance(record, dict):
            form["answer"] = [is_text] if isinstance(record.get("answer"), list) else is_text
            if record.get("golden_passages", []) != []:
                form["golden_passages"] = [is_text]
        yield from problems_in(record, form, f"record {index}")
