"""Controls of answering: the records of a data type with other passages or other questions.

An entry that is taken from another question says so: its "of" is that question's number, under
which its adapter is. What a control separates: docs/evidence.md.
"""

import random
import re
from itertools import islice
from pathlib import Path

from utils.augmentation.records import in_passage
from utils.files import hash_json, relative
from utils.metrics import CLOSED_ANSWERS, normalize
from utils.questions import load_questions
from utils.recipe import Recipe
from utils.running import InputError

REPLACED = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None)}


def controlled(records: list[dict], recipe: Recipe) -> list[dict]:
    """The `records` of a data type as `recipe` has them answered: first gold passages leave, then
    noise comes, then other questions. Without a control they are the same object."""
    if recipe.leave_out:
        records = without_gold(records)
    if recipe.noise:
        records = with_noise(records, recipe.noise, recipe.seed)
    if recipe.locality:
        records = with_other_questions(records, Path(recipe.locality), recipe.seed)
    return records


def is_gold(passage: str, record: dict) -> bool:
    """Whether a right answer occurs in `passage`, also with an 's (but not yes and no, which answer
    nothing there), or the data set names it among the question's supporting ones."""
    text = re.sub("['\N{RIGHT SINGLE QUOTATION MARK}]s\\b", "", passage)
    return passage in record.get("golden_passages", ()) or any(
        in_passage(answer, shown) for answer in open_answers(record) for shown in (passage, text)
    )


def open_answers(record: dict) -> list[str]:
    """The right answers that are more than yes or no."""
    answers = [record["answer"]] if isinstance(record["answer"], str) else record["answer"]
    return [answer for answer in answers if normalize(answer) not in CLOSED_ANSWERS]


def with_entries(record: dict, entries: list[dict]) -> dict:
    """`record` with these entries instead of its own."""
    return {**record, "passages": [entry["passage"] for entry in entries], "augment": entries}


def without_gold(records: list[dict]) -> list[dict]:
    """The records without the passages that hold a right answer or support one."""
    return [
        with_entries(record, [e for e in record["augment"] if not is_gold(e["passage"], record)])
        for record in records
    ]


def with_noise(records: list[dict], place: str, seed: int) -> list[dict]:
    """The records whose passages at `place` (first, last, all) are others of these records.

    They are drawn without replacement among the different passages of all questions, but not those
    of the question itself and none that `is_gold` to it; a question's draw depends on `seed`, its
    number and the passages that there are. A retrieval score stays with its rank. Raises
    `InputError` if there are too few.
    """
    pool: dict[str, dict] = {}
    for did, record in enumerate(records):
        for entry in record["augment"]:
            pool.setdefault(entry["passage"], {**entry, "of": entry.get("of", did)})
    others, noisy = list(pool.values()), []
    for did, record in enumerate(records):
        entries = list(record["augment"])
        own = {entry["passage"] for entry in entries}
        replaced = entries[REPLACED[place]]
        drawn = random.Random(hash_json([seed, did])).sample(others, len(others))
        fitting = (one for one in drawn if one["passage"] not in own)
        fitting = (one for one in fitting if not is_gold(one["passage"], record))
        taken = list(islice(fitting, len(replaced)))
        if len(taken) < len(replaced):
            raise InputError(
                f"--noise {place}: the other questions have only {len(taken)} passages that can "
                f"replace {len(replaced)} of question {did}; take more questions"
            )
        entries[REPLACED[place]] = [
            {**one, **({"score": old["score"]} if "score" in old else {})}
            for one, old in zip(taken, replaced, strict=True)
        ]
        noisy.append(with_entries(record, entries))
    return noisy


def with_other_questions(records: list[dict], path: Path, seed: int) -> list[dict]:
    """The records, each with a question of the file at `path` in the place of its own.

    They are drawn without replacement, begun again if they are too few; one that the records ask
    themselves is left out. Raises `InputError` if the file is missing, broken, or has no other.
    """
    own = {record["question"] for record in records}
    asked = [one for rows in load_questions("locality", path).values() for one in rows]
    others = [one for one in asked if one["question"] not in own]
    if not others:
        problem = f"--locality {relative(path)} asks nothing but the data set's own questions"
        raise InputError(f"{problem}; give a file of others")
    drawn = random.Random(seed).sample(others, len(others))
    kept = ("test_id", "passages", "augment")
    return [
        {name: record[name] for name in kept}
        | {name: drawn[number % len(drawn)][name] for name in ("question", "answer")}
        for number, record in enumerate(records)
    ]
