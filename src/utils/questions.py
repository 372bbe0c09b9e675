"""Raw data sets -> question records.

A question record is `{"test_id", "question", "answer"}` (`answer`: a string, or a list of strings
of which any is right), with `"qid"`, `"type"` and `"golden_passages"` if the raw data has them.
`test_id` is the record's index in the list of its data type, so it is unique within a file.

Another raw data set is one loader and one line in `DATASETS`.
"""

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import missing, parse_json, read_json, read_text, relative
from utils.layout import dataset_folder, folder_name
from utils.running import InputError

SHOWN_PROBLEMS = 5
QUESTION_FORMAT = "a question must be a text, an answer a text or a list of texts, none of it empty"
ANSWERS = ("published", "all")  # which right answers a published data set gives
FIELDS = ("question", "answer", "qid", "type", "golden_passages")


@dataclass(frozen=True)
class DataSet:
    """A published data set: its raw files, and how they become question records.

    `load` takes the paths of `files`, the questions' first, and gives the records in their order,
    without `test_id`. `types` are the values of "type" that are evaluated each alone, beside all
    together ("total"). With `evidence` a record also has "evidence": a list of the texts that
    support its answer, of which the warm-up makes data with reasoning; and "lost" if the raw
    record lacks some. "all_answers" are those of `--answers all`, if they are more than "answer".
    Records without an answer are left out. `contexts` gives title and text of each paragraph that
    the questions' file shows beside its questions, if it shows any.
    """

    source: str  # the URL to download it from
    files: tuple[str, ...]
    load: Callable[..., list[dict]]
    types: tuple[str, ...] = ()
    evidence: bool = False
    contexts: Callable[[Path], Iterator[tuple[str, str]]] | None = None


def _load_multihop(questions: Path, aliases: Path | None = None) -> list[dict]:
    """2wikimultihopqa or hotpotqa, which share one record shape."""
    lines = read_text(aliases, "the alias file").split("\n") if aliases else []
    named = [(f"line {n} of {aliases}", line) for n, line in enumerate(lines, 1) if line.strip()]
    entries = [parse_json(line, where) for where, line in named]
    names = {str(entry["Q_id"]): entry for entry in entries}
    records = []
    for index, raw in enumerate(read_records(questions)):
        support = list(_support(raw, f"record {index} of {relative(questions)}"))
        entry, answer = names.get(str(raw.get("answer_id")), {"aliases": []}), raw.get("answer")
        alternatives = [*entry["aliases"], *_texts(entry.get("demonyms") or [])]
        record = {
            "question": raw.get("question"),
            "answer": _texts(entry["aliases"]) or answer,
            "all_answers": _texts([answer, *alternatives]) if alternatives else None,
            "qid": raw.get("_id", raw.get("id")),
            "type": raw.get("type"),
            "golden_passages": [whole for whole, _ in support if whole],
            "evidence": [sentences for _, sentences in support if sentences],
            "lost": None if support and all(whole for whole, _ in support) else True,
        }
        records.append({field: value for field, value in record.items() if value is not None})
    return records


def _support(raw: dict, place: str) -> Iterator[tuple[str, str]]:
    """Each supporting paragraph of a record: its text, and its supporting sentences alone.

    They come in the order of their first mention, `title: sentence …` the latter. A few facts of
    the raw data have a title or a place that the context does not: these give "".
    """
    paragraphs = dict(_titled(raw.get("context"), place))
    wanted: dict[str, list] = {}  # title -> places of its supporting sentences
    for title, number in _titled(raw.get("supporting_facts"), place):
        wanted.setdefault(title, []).append(number)
    for title, places in wanted.items():
        sentences = paragraphs.get(title, [])
        chosen = [s.strip() for i, s in enumerate(sentences) if i in places and s.strip()]
        yield _paragraph(sentences), f"{title}: {' '.join(chosen)}" if chosen else ""


def _paragraph(sentences: list) -> str:
    """The sentences as one text: a golden passage is the same wherever it comes from."""
    return " ".join(sentence.strip() for sentence in _texts(sentences))


def _multihop_contexts(questions: Path) -> Iterator[tuple[str, str]]:
    """Title and text of each paragraph of each record; one without any text is left out."""
    for index, raw in enumerate(read_records(questions)):
        place = f"record {index} of {relative(questions)}"
        if not (paragraphs := _titled(raw.get("context"), place)):
            raise InputError(f"{place} has no context")
        for title, sentences in paragraphs:
            if not isinstance(title, str):
                raise TypeError(title)
            if text := _paragraph(sentences):
                yield title, text


def _titled(value: Any, place: str) -> list:
    """Pairs of a title and another value; the hub has objects, or JSON as a text, instead."""
    value = parse_json(value, place) if isinstance(value, str) else value or []
    if isinstance(value, dict):
        [other] = value.keys() - {"title"}  # "sentences", "content", "sent_id"
        return list(zip(value["title"], value[other], strict=True))
    return [[one.pop("title"), *one.values()] if isinstance(one, dict) else one for one in value]


def _texts(values: list) -> list[str]:
    """The texts in a list, without blank ones and repetitions, in their order."""
    if not isinstance(values, list):
        raise TypeError(values)
    return list(dict.fromkeys(filter(is_text, values)))


def _load_popqa(file: Path) -> list[dict]:
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is below some alias lists
    text = io.StringIO(read_text(file, "the data set"), newline="")
    records = []
    for index, row in enumerate(csv.DictReader(text, dialect="excel-tab", strict=True)):
        row = {"possible_answers": None, **row}
        aliases, possible = (
            _texts(parse_json(row[name] or "[]", f"record {index}: {name}"))
            for name in ("o_aliases", "possible_answers")
        )
        record = {"question": row["question"], "answer": _texts([row["obj"], *aliases])}
        record["all_answers"] = _texts([row["obj"], *aliases, *possible])
        records.append({**record, "qid": row["id"]} if row.get("id") else record)
    return records


def _load_complexwebquestions(file: Path) -> list[dict]:
    records = []
    for raw in read_records(file):
        answers = _names(raw.get("answers")) or _names(raw.get("answer"))
        record = {"question": raw.get("question"), "answer": _texts(answers)}
        records.append({**record, "qid": raw["ID"]} if "ID" in raw else record)
    return records


def _names(answer: Any) -> list:
    """A text, an object {"answer", "aliases"} or a list of these, as a list of names."""
    if isinstance(answer, dict):
        return _names(answer.get("answer")) + _names(answer.get("aliases"))
    return sum(map(_names, answer), []) if isinstance(answer, list) else _texts([answer])


DATASETS = {
    "2wikimultihopqa": DataSet(
        "https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?e=1",
        ("dev.json", "id_aliases.json"),
        _load_multihop,
        types=("comparison", "bridge_comparison", "inference", "compositional"),
        evidence=True,
        contexts=_multihop_contexts,
    ),
    "hotpotqa": DataSet(
        "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
        ("hotpot_dev_distractor_v1.json",),
        _load_multihop,
        types=("bridge", "comparison"),
        evidence=True,
        contexts=_multihop_contexts,
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
        holds = f"holds {' and '.join(held) or 'no data set'}"
        files = [f"{' and '.join(data.files)} ({name})" for name, data in known.items()]
        raise InputError(
            f"--from_contexts {relative(folder)} {holds if folder.exists() else missing(folder)}; "
            f"give a folder that holds one data set with contexts: {', or '.join(files)}"
        )
    data = known[chosen[0]]
    with _raw_faults_named(data, folder, "--from_contexts"):
        return chosen[0], list(dict.fromkeys(data.contexts(folder / data.files[0])))


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
    lost = sum(record.pop("lost", False) for record in records)
    remarks = {
        f"of {len(read)} questions have no answer and are left out": len(read) - len(records),
        f"of {len(records)} questions lack supporting paragraphs in their context; if these are "
        f"many, it is another file than that of {data.source}": lost,
    }
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


def _question_problems(records: Iterable[tuple[int, Any]]) -> Iterator[str]:
    """What is not as a question record needs it, in records with their indices."""
    for index, record in records:
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
