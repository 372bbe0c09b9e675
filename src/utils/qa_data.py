"""Raw data sets -> question records, and the reading of `data_aug/` files.

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

from utils.paths import InputError, augmented_file, folder_name, read_json, read_text, relative

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
    _raise_problems(file, _question_problems(records))
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


def _load_multihop(dataset: str, folder: Path) -> tuple[Path, list[dict]]:
    """2wikimultihopqa or hotpotqa, which share one record shape."""
    aliases: dict[str, list[str]] = {}
    if dataset == "2wikimultihopqa":
        file = _raw_file(dataset, folder, "dev.json")
        aliases = _read_aliases(_raw_file(dataset, folder, "id_aliases.json"))
    else:
        file = _raw_file(dataset, folder, "hotpot_dev_distractor_v1.json")
    records = []
    for raw in _read_records(file):
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
        except (json.JSONDecodeError, KeyError, TypeError):
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
        except (ValueError, TypeError):  # no JSON, or a row that is cut off
            aliases = None
        if not isinstance(aliases, list):
            problems.append(f"record {index}: o_aliases is no JSON list")
            continue
        record = {"question": row["question"], "answer": _texts([row["obj"], *aliases])}
        records.append({**record, "qid": row["id"]} if row.get("id") else record)
    _raise_problems(file, problems, f"download it again from {SOURCES['popqa']}")
    return file, records


def _load_complexwebquestions(folder: Path) -> tuple[Path, list[dict]]:
    file = _raw_file("complexwebquestions", folder, "ComplexWebQuestions_dev.json")
    records = []
    for raw in _read_records(file):
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
            problems.append(f"{where}expected a list of records, found {_kind(records)}")
            continue
        problems += [where + problem for problem in _question_problems(records)]
        if not problems:
            loaded[data_type] = [
                {"test_id": index, "question": record["question"], "answer": record["answer"]}
                | {field: record[field] for field in OPTIONAL_FIELDS if field in record}
                for index, record in enumerate(records)
            ]
    if not lists:
        problems = ["expected records, found an empty object"]
    _raise_problems(path, problems)
    return loaded


# ------------------------------------------------------------------------------------------------
# data_aug files


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


def read_augmented(dataset: str, data_type: str, augment_model: str) -> list[dict]:
    """The records of one data type, with the passages that `augment_model` has worked on.

    They stand in `data_aug/{dataset}/{data_type}.json` or, as the released archive has them, in
    `data_aug/{dataset}/{model}/{data_type}.json`. Each entry of a record's "augment" has `pid`,
    `passage`, `rewrite` (text) and `qa` (a list of `{"question", "answer", "full_answer"}`);
    it is an empty list where the model has not come to that record yet.
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
        chosen = [{**r, "augment": _entries_of(r["augment"], model)} for r in records]
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


def _entries_of(augment: list[dict], model: str) -> list[dict]:
    """The passages that `model` has finished, without its name in the keys."""
    return [
        {"pid": entry["pid"], "passage": entry["passage"]}
        | {"rewrite": entry[f"{model}_rewrite"], "qa": entry[f"{model}_qa"]}
        for entry in augment
        if f"{model}_rewrite" in entry and f"{model}_qa" in entry
    ]


def _read_augmented_file(path: Path) -> list[dict]:
    """The checked records of an augmented file, a bare total.json filled from its neighbours."""
    records = _read_records(path)
    if path.stem == "total" and not any("augment" in record for record in records):
        records = _fill_from_types(records, path)
    problems = [f"record {i}: {p}" for i, r in enumerate(records) for p in _augmented_problems(r)]
    _raise_problems(path, problems, "correct these, or delete the file and run augment.py again")
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
# Checks


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    kinds = {str: "text", list: "list", dict: "object", bool: "truth value"}
    empty = value == [] or value == {} or (isinstance(value, str) and not value.strip())
    article = "an empty" if empty else "an" if isinstance(value, dict) else "a"
    return f"{article} {kinds.get(type(value), 'number')}"


def _read_records(path: Path) -> list[dict]:
    """The objects in a raw JSON file; `InputError` where it holds something else."""
    records = read_json(path, "the data set")
    if not isinstance(records, list) or not records:
        raise InputError(f"{relative(path)} holds {_kind(records)}, not a list of records")
    problems = [f"record {i} is {_kind(r)}" for i, r in enumerate(records) if type(r) is not dict]
    _raise_problems(path, problems, "each record must be an object")
    return records


def _question_problems(records: list) -> list[str]:
    """One sentence for each field of `records` that is not as a question record needs it."""
    problems = []
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            problems.append(f"record {index} is {_kind(record)}, not a record")
            continue
        for field in ("question", "answer"):
            if field not in record:
                problems.append(f"record {index} has no {field}")
        question, answer = record.get("question", "?"), record.get("answer", "?")
        if not isinstance(question, str) or not question.strip():
            problems.append(f"record {index}: question is {_kind(question)}")
        answers = answer if isinstance(answer, list) and answer else [answer]
        wrong = [one for one in answers if not isinstance(one, str) or not one.strip()]
        if wrong:
            part = "answer has an element that is" if answers is answer else "answer is"
            problems.append(f"record {index}: {part} {_kind(wrong[0])}")
        golden = record.get("golden_passages", [])
        if not isinstance(golden, list) or not all(isinstance(one, str) for one in golden):
            problems.append(f"record {index}: golden_passages is no list of texts")
    return problems


def _augmented_problems(record: dict) -> list[str]:
    """What is wrong in a record of an augmented file; the answers in it become texts in place."""
    fields = {"test_id": int, "question": str, "answer": (str, list), "augment": list}
    problems = _wrong_fields(record, fields)
    augment = record.get("augment")
    for position, entry in enumerate(augment if isinstance(augment, list) else []):
        where = f"augment[{position}]"
        if not isinstance(entry, dict):
            problems.append(f"{where} is {_kind(entry)}")
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
                    problems.append(f"{here} is {_kind(pair)}")
                    continue
                _answers_to_text(pair)
                texts = dict.fromkeys(("question", "answer", "full_answer"), str)
                problems += _wrong_fields(pair, texts, f"{here}.")
    return problems


def _wrong_fields(record: dict, kinds: dict[str, Any], where: str = "") -> list[str]:
    """The fields of `record` that are missing or not of the type (or types) in `kinds`."""
    return [
        f"{where}{field} is {_kind(record[field]) if field in record else 'missing'}"
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


def _raise_problems(path: Path, problems: list[str], remedy: str = QUESTION_FORMAT) -> None:
    """One `InputError` for all `problems`: the first few in words, the rest counted."""
    if problems:
        shown, rest = problems[:SHOWN_PROBLEMS], len(problems) - SHOWN_PROBLEMS
        more = f"; and {rest} more" if rest > 0 else ""
        raise InputError(f"{relative(path)} cannot be used: {'; '.join(shown)}{more}; {remedy}")
