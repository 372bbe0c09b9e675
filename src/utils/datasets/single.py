"""Raw data sets that name no supporting paragraphs: PopQA, ComplexWebQuestions, TriviaQA, NQ-open,
WebQuestions."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from utils.files import parse_json, read_json, read_text
from utils.forms import read_records, texts

DESCRIPTION = re.compile(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)')


def load_popqa(file: Path) -> list[dict]:
    """PopQA (2212.10511): the object of the triple or an alias of it is right."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is below some alias lists
    text = io.StringIO(read_text(file, "the data set"), newline="")
    records = []
    for index, row in enumerate(csv.DictReader(text, dialect="excel-tab", strict=True)):
        row = {"possible_answers": None, **row}
        aliases, possible = (
            texts(parse_json(row[name] or "[]", f"record {index}: {name}"))
            for name in ("o_aliases", "possible_answers")
        )
        record = {"question": row["question"], "answer": texts([row["obj"], *aliases])}
        record["all_answers"] = texts([row["obj"], *aliases, *possible])
        records.append({**record, "qid": row["id"]} if row.get("id") else record)
    return records


def load_complexwebquestions(file: Path) -> list[dict]:
    """ComplexWebQuestions (1803.06643): each answer and each alias of one is right."""
    records = []
    for raw in read_records(file):
        answers = _names(raw.get("answers")) or _names(raw.get("answer"))
        record = {"question": raw.get("question"), "answer": texts(answers)}
        records.append({**record, "qid": raw["ID"]} if "ID" in raw else record)
    return records


def _names(answer: Any) -> list:
    """A text, an object {"answer", "aliases"} or a list of these, as a list of names."""
    if isinstance(answer, dict):
        return _names(answer.get("answer")) + _names(answer.get("aliases"))
    return sum(map(_names, answer), []) if isinstance(answer, list) else texts([answer])


def load_triviaqa(file: Path) -> list[dict]:
    """TriviaQA (1705.03551), unfiltered: the value or an alias is right."""
    return [
        {
            "question": raw["Question"],
            "answer": texts([raw["Answer"]["Value"], *raw["Answer"]["Aliases"]]),
            "qid": raw["QuestionId"],
        }
        for raw in read_json(file, "the data set")["Data"]
    ]


def load_nq_open(file: Path) -> list[dict]:
    """NQ-open (1906.00300): each answer is right. Its questions have no ids."""
    return [
        {"question": raw["question"], "answer": texts(raw["answer"])} for raw in read_records(file)
    ]


def load_webquestions(file: Path) -> list[dict]:
    """WebQuestions (Berant et al., EMNLP 2013): each description is right. Without ids, too.

    `targetValue` is a list in Lisp: `(list (description Orr) (description "Sorrel Bay"))`.
    """
    records = []
    for raw in read_records(file):
        found, value = DESCRIPTION.findall(raw["targetValue"]), raw["targetValue"]
        if len(found) < value.count("(description"):
            raise ValueError(value)
        answers = [re.sub(r"\\(.)", r"\1", quoted) or plain for quoted, plain in found]
        records.append({"question": raw["utterance"], "answer": texts(answers)})
    return records
