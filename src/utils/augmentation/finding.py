"""The passages that each question could get: an engine's hits, or the golden ones of the data."""

import argparse
from collections.abc import Callable

from tqdm import tqdm

from utils.augmentation.writing import Candidates, work_key
from utils.retrieval import ENGINES, PassageIndex, open_index
from utils.running import InputError

SPARE_PASSAGES = 10  # retrieved beyond topk, to take the place of passages that are dropped
SEARCHES = 100  # questions in one block


def open_engine(
    options: argparse.Namespace, questions: dict[str, list[dict]], say: Callable[[str], None]
) -> PassageIndex | None:
    """The index that the flags name; None for the golden passages, which the questions carry.
    Raises `InputError` if the index cannot be used or no question has golden passages."""
    if options.engine in ENGINES:
        return open_index(options, options.topk, "--topk")
    records = [record for rows in questions.values() for record in rows]
    without = sum(not record.get("golden_passages") for record in records)
    if without == len(records):
        raise InputError(
            f"--engine golden: no question of {options.dataset} has golden_passages; use another "
            "engine, or add the field to the questions"
        )
    if without:
        say(f"{without} of {len(records)} questions have no golden passage and get none")
    return None


def find_candidates(
    questions: dict[str, list[dict]], index: PassageIndex | None, topk: int, per_question: bool
) -> dict[str, list[Candidates]]:
    """For each question of each data type its candidates, best first: work key -> hit.

    A question of several data types is searched once. `per_question`: each question gets its own
    texts. A row of a corpus gets itself. Raises `InputError` if a search fails or nothing is found
    for any question.
    """
    asked = list(dict.fromkeys(r["question"] for rows in questions.values() for r in rows))
    asked = [question for question in asked if question is not None]
    found: dict[str, list[dict]] = {}
    starts = range(0, len(asked) if index else 0, SEARCHES)
    for start in tqdm(starts, desc="retrieve", unit="block", disable=not starts):
        block = asked[start : start + SEARCHES]
        found |= zip(block, index.search(block, topk + SPARE_PASSAGES), strict=True)

    def candidates(data_type: str, record: dict) -> Candidates:
        if record["question"] is None:
            [passage] = record["passages"]
            return {
                work_key(passage): {"text": passage, "id": record["id"], "title": record["title"]}
            }
        question = (data_type, record) if per_question else None
        golden = [{"text": passage} for passage in record.get("golden_passages", [])]
        hits = found[record["question"]] if index else golden
        return {work_key(hit["text"], question): hit for hit in hits}

    chosen = {name: [candidates(name, record) for record in questions[name]] for name in questions}
    if not any(hits for rows in chosen.values() for hits in rows):
        raise InputError(
            f"no passage was found for any of {len(asked)} questions; is --index_name that of "
            "their corpus?"
        )
    return chosen
