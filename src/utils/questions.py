"""Raw data sets -> question records.

A question record is `{"test_id", "question", "answer"}` (`answer`: a string, or a list of strings
of which any is right), with `"qid"`, `"type"` and `"golden_passages"` where the raw data has them.
`test_id` is the record's index in the list of its data type, so it is unique within a file.
"""

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.files import read_json, read_text, relative
from utils.layout import folder_name
from utils.running import InputError

TYPES = {
    "2wikimultihopqa": ("comparison", "bridge_comparison", "inference", "compositional"),
    "hotpotqa": ("bridge", "comparison"),
    "popqa": (),
    "complexwebquestions": (),
}
SOURCES = {
    "2wikimultihopqa": "https://www.dropbox.com/s/ms2m13252h6xubs/data_ids_april7.zip?e=1",
    "hotpotqa": "http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json",
    "popqa": "https://raw.githubusercontent.com/AlexTMallen/adaptive-retrieval/main/data/popQA.tsv",
    "complexwebquestions": "https://www.tau-nlp.sites.tau.ac.il/compwebq",
}
SHOWN_PROBLEMS = 5
QUESTION_FORMAT = "a question must be a text, an answer a text or a list of texts, none of it empty"
OPTIONAL_FIELDS = ("qid", "type", "golden_passages")


def load_questions(dataset: str, data_path: str | Path) -> dict[str, list[dict]]:
    """The question records of each data type of `dataset`, all in the data set's own order.

    `data_path` is the folder with the raw files for the four published data sets. Those with types
    (2wikimultihopqa, hotpotqa) give each type that occurs and, last, "total" with all questions;
    the others "total" alone. For any other name it is a JSON file: a list of records, whose data
    type is the file's stem, or an object `{data_type: list of records}`.
    Raises `InputError` where a file is missing or a record is broken.
    """
    path = Path(data_path)
    if dataset not in TYPES:
        return _load_custom(dataset, path)
    if path.is_file():
        raise InputError(f"--data_path {relative(path)} is a file; give the folder that holds it")
    if dataset == "popqa":
        file, records = _load_popqa(path)
    elif dataset == "complexwebquestions":
        file, records = _load_complexwebquestions(path)
    else:
        file, records = _load_multihop(dataset, path)
    if not records:
        raise InputError(f"{relative(file)} holds no question; download it from {SOURCES[dataset]}")
    raise_problems(file, _question_problems(records))
    typed = {name: [r for r in records if r.get("type") == name] for name in TYPES[dataset]}
    return {
        name: [{"test_id": index, **record} for index, record in enumerate(chosen)]
        for name, chosen in {**typed, "total": records}.items()
        if chosen
    }


def take_sample(records: dict[str, list[dict]], sample: int) -> dict[str, list[dict]]:
    """The first `sample` records of each data type; -1 takes all.

    Raises `InputError` where `sample` is neither -1 nor positive.
    """
    if sample != -1 and sample < 1:
        raise InputError(f"--sample {sample} takes no question; give a number above 0, or -1 (all)")
    return {
        data_type: chosen if sample == -1 else chosen[:sample]
        for data_type, chosen in records.items()
    }


def load_supporting_sentences(dataset: str, data_path: str | Path) -> list[list[str]]:
    """What supports each question of "total", in its order: for 2wikimultihopqa and hotpotqa.

    One text `title: sentence sentence …` for each supporting paragraph, in the order of their
    first mention, with the supporting sentences in the order of the paragraph. Facts whose title
    or sentence the context does not hold are passed over, so a question's list can be empty.
    Raises `InputError` where the file is missing or broken.
    """
    records = read_records(_multihop_file(dataset, Path(data_path)))
    return [_supporting_sentences(raw) for raw in records]


# ------------------------------------------------------------------------------------------------
# The published data sets


def _raw_file(dataset: str, folder: Path, name: str) -> Path:
    """The path of a published data set's raw file; `InputError` where it is missing."""
    path = folder / name
    if not path.is_file():
        raise InputError(
            f"{relative(path)} does not exist; --data_path must be the folder that holds {name}, "
            f"which comes from {SOURCES[dataset]}"
        )
    return path


def _multihop_file(dataset: str, folder: Path) -> Path:
    names = {"2wikimultihopqa": "dev.json", "hotpotqa": "hotpot_dev_distractor_v1.json"}
    return _raw_file(dataset, folder, names[dataset])


def _load_multihop(dataset: str, folder: Path) -> tuple[Path, list[dict]]:
    """2wikimultihopqa or hotpotqa, which share one record shape."""
    aliases: dict[str, list[str]] = {}
    file = _multihop_file(dataset, folder)
    if dataset == "2wikimultihopqa":
        aliases = _read_aliases(_raw_file(dataset, folder, "id_aliases.json"))
    records = []
    for raw in read_records(file):
        record = {
            "question": raw.get("question"),
            "answer": aliases.get(str(raw.get("answer_id"))) or raw.get("answer"),
            "qid": raw.get("_id"),
            "type": raw.get("type"),
            "golden_passages": _golden_passages(raw),
        }
        records.append({field: value for field, value in record.items() if value is not None})
    return file, records


def _read_aliases(path: Path) -> dict[str, list[str]]:
    """`answer_id` -> its right answers, from the JSON lines of id_aliases.json."""
    aliases = {}
    for number, line in enumerate(read_text(path, "the alias file").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            aliases[str(entry["Q_id"])] = _texts(entry["aliases"])
            json.dumps(entry, ensure_ascii=False).encode()  # half a character is no text
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f'{relative(path)}, line {number} is no JSON object with "Q_id" and "aliases"; '
                f"download it again from {SOURCES['2wikimultihopqa']}"
            ) from None
    return aliases


def _golden_passages(raw: dict) -> list[str] | None:
    """The supporting paragraphs in the order of their first mention, or None without any field.

    The raw data holds a few facts whose title has no paragraph: these are passed over.
    """
    if "context" not in raw or "supporting_facts" not in raw:
        return None
    paragraphs = {
        title: " ".join(sentence.strip() for sentence in _texts(sentences))
        for title, sentences in _pairs(raw["context"])
    }
    titles = dict.fromkeys(title for title, _ in _pairs(raw["supporting_facts"]))
    return [paragraphs[title] for title in titles if paragraphs.get(title)]


def _supporting_sentences(raw: dict) -> list[str]:
    """One record's supporting sentences, see `load_supporting_sentences`."""
    paragraphs = dict(_pairs(raw.get("context")))
    wanted: dict[str, set[int]] = {}  # title -> places of its supporting sentences
    for title, place in _pairs(raw.get("supporting_facts")):
        wanted.setdefault(title, set()).add(place if isinstance(place, int) else -1)
    texts = []
    for title, places in wanted.items():
        sentences = paragraphs.get(title)
        held = enumerate(sentences if isinstance(sentences, list) else [])
        chosen = [_texts([sentence]) for place, sentence in held if place in places]
        if support := " ".join(sentence.strip() for one in chosen for sentence in one):
            texts.append(f"{title}: {support}")
    return texts


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """The elements of `value` that are a pair which starts with a text."""
    for element in value if isinstance(value, list) else []:
        if isinstance(element, list) and len(element) == 2 and isinstance(element[0], str):
            yield element[0], element[1]


def _texts(values: Any) -> list[str]:
    """The texts in a list, without blank ones and repetitions, in their order."""
    values = values if isinstance(values, list) else []
    return list(dict.fromkeys(v for v in values if isinstance(v, str) and v.strip()))


def _load_popqa(folder: Path) -> tuple[Path, list[dict]]:
    file = _raw_file("popqa", folder, "popQA.tsv")
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is below some alias lists
    text = io.StringIO(read_text(file, "the data set"), newline="")
    reader = csv.DictReader(text, dialect="excel-tab", strict=True)
    try:
        if not {"question", "obj", "o_aliases"} <= set(reader.fieldnames or ()):
            raise InputError(
                f'{relative(file)} has no columns "question", "obj" and "o_aliases" (a web page '
                f"saved under its name, perhaps); download it from {SOURCES['popqa']}"
            )
        rows = list(reader)
    except csv.Error as error:
        raise InputError(
            f"{relative(file)} is no valid TSV ({error}); download it again from {SOURCES['popqa']}"
        ) from None
    records, problems = [], []
    for index, row in enumerate(rows):
        try:
            aliases = json.loads(row["o_aliases"]) if row["o_aliases"] != "" else []
            json.dumps(aliases, ensure_ascii=False).encode()  # half a character is no text
        except (ValueError, TypeError, RecursionError):  # no JSON, or a row that is cut off
            aliases = None
        if not isinstance(aliases, list):
            problems.append(f"record {index}: o_aliases is no JSON list")
            continue
        record = {"question": row["question"], "answer": _texts([row["obj"], *aliases])}
        records.append({**record, "qid": row["id"]} if row.get("id") else record)
    raise_problems(file, problems, f"download it again from {SOURCES['popqa']}")
    return file, records


def _load_complexwebquestions(folder: Path) -> tuple[Path, list[dict]]:
    file = _raw_file("complexwebquestions", folder, "ComplexWebQuestions_dev.json")
    records = []
    for raw in read_records(file):
        answers = []
        for entry in raw["answers"] if isinstance(raw.get("answers"), list) else []:
            if isinstance(entry, dict):
                answers += [entry.get("answer"), *_texts(entry.get("aliases"))]
        record = {"question": raw.get("question"), "answer": _texts(answers)}
        if record["answer"]:  # an answer without a name cannot be scored
            records.append({**record, "qid": raw["ID"]} if "ID" in raw else record)
    return file, records


# ------------------------------------------------------------------------------------------------
# Any other data set


def _load_custom(dataset: str, path: Path) -> dict[str, list[dict]]:
    if path.is_dir():
        raise InputError(
            f"--data_path {relative(path)} is a folder, but data set {dataset!r} is none of "
            f"{', '.join(TYPES)}; give its JSON file"
        )
    value = read_json(path, "the data set")
    lists = value if isinstance(value, dict) else {path.stem: value}
    folders = [folder_name(data_type) for data_type in lists]
    if len(set(folders)) < len(folders):
        raise InputError(
            f"{relative(path)} has data types that give the same file name "
            f"({', '.join(sorted(lists))}); rename one"
        )
    loaded: dict[str, list[dict]] = {}
    problems = []
    for data_type, records in lists.items():
        where = f"{data_type}, " if isinstance(value, dict) else ""
        if not isinstance(records, list) or not records:
            problems.append(f"{where}expected a list of records, found {kind_of(records)}")
            continue
        problems += [where + problem for problem in _question_problems(records)]
        if not problems:
            _say_repetitions(records, f"{relative(path)}, {data_type}")
            loaded[data_type] = [
                {"test_id": index, "question": record["question"], "answer": record["answer"]}
                | {field: record[field] for field in OPTIONAL_FIELDS if field in record}
                for index, record in enumerate(records)
            ]
    if not lists:
        problems = ["expected records, found an empty object"]
    raise_problems(path, problems)
    return loaded


def _say_repetitions(records: list[dict], where: str) -> None:
    """Warn of questions that come more than once: each is answered and counted as often."""
    seen: set[str] = set()
    again = []
    for index, record in enumerate(records):
        if record["question"] in seen:
            again.append(index)
        seen.add(record["question"])
    if again:
        print(
            f"warning: {where}: {len(again)} questions come again, such as that of record "
            f"{again[0]}: {records[again[0]]['question']!r}; each counts, so remove what is not "
            "meant to be there twice",
            file=sys.stderr,
        )


# ------------------------------------------------------------------------------------------------
# Checks


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for an error: "a text", "an empty list", "null"."""
    if value is None:
        return "null"
    kinds = {str: "text", list: "list", dict: "object", bool: "truth value"}
    empty = value == [] or value == {} or (isinstance(value, str) and not value.strip())
    article = "an empty" if empty else "an" if isinstance(value, dict) else "a"
    return f"{article} {kinds.get(type(value), 'number')}"


def read_records(path: Path) -> list[dict]:
    """The objects listed in a JSON file. Raises `InputError` where it holds no such list."""
    records = read_json(path, "the data set")
    if not isinstance(records, list) or not records:
        raise InputError(f"{relative(path)} holds {kind_of(records)}, not a list of records")
    problems = [f"record {i} is {kind_of(r)}" for i, r in enumerate(records) if type(r) is not dict]
    raise_problems(path, problems, "each record must be an object")
    return records


def _question_problems(records: list) -> list[str]:
    """One sentence for each field of `records` that is not as a question record needs it."""
    problems = []
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"record {index} is {kind_of(record)}, not a record")
            continue
        for field in ("question", "answer"):
            if field not in record:
                problems.append(f"record {index} has no {field}")
        question, answer = record.get("question", "?"), record.get("answer", "?")
        if not isinstance(question, str) or not question.strip():
            problems.append(f"record {index}: question is {kind_of(question)}")
        answers = answer if isinstance(answer, list) and answer else [answer]
        wrong = [one for one in answers if not isinstance(one, str) or not one.strip()]
        if wrong:
            part = "answer has an element that is" if answers is answer else "answer is"
            problems.append(f"record {index}: {part} {kind_of(wrong[0])}")
        golden = record.get("golden_passages", [])
        if not isinstance(golden, list) or not all(
            isinstance(one, str) and one.strip() for one in golden
        ):
            problems.append(f"record {index}: golden_passages is no list of texts, or one is empty")
    return problems


def raise_problems(path: Path, problems: list[str], remedy: str = QUESTION_FORMAT) -> None:
    """Raise one `InputError` for all `problems`, the first few in words, the rest counted.

    It ends with `remedy`. Without problems nothing happens.
    """
    if problems:
        shown, rest = problems[:SHOWN_PROBLEMS], len(problems) - SHOWN_PROBLEMS
        more = f"; and {rest} more" if rest > 0 else ""
        raise InputError(f"{relative(path)} cannot be used: {'; '.join(shown)}{more}; {remedy}")
