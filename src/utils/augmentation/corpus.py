"""A corpus as the data set: texts about every passage of an index, without questions.

The data type `corpus` has a record for each row of the index, in its order. Texts belong to a
passage, not to its place: when the index changes, the passages that it still holds keep theirs.
"""

from itertools import islice
from typing import Any

from utils.augmentation.files import REMEDY, AugmentedFiles
from utils.augmentation.records import HIT_FIELDS, read_augmented_file
from utils.augmentation.writing import Candidates
from utils.files import relative
from utils.journal import refuse_difference
from utils.layout import CORPUS
from utils.retrieval import PassageIndex
from utils.running import InputError


def corpus_rows(index: PassageIndex, sample: int) -> tuple[list[dict], bool]:
    """The first `sample` passages of `index` (-1: all) as records without a question, and whether
    these are all."""
    passages = index.passages()
    rows = [
        {
            "test_id": number,
            "question": None,
            "id": passage["id"],
            "title": passage["title"],
            "passages": [passage["text"]],
        }
        for number, passage in enumerate(islice(passages, None if sample == -1 else sample))
    ]
    return rows, next(passages, None) is None


class CorpusFiles(AugmentedFiles):
    """The file of a corpus, whose `questions` are `corpus_rows`; `whole`: all of them.

    Raises `InputError` also if the file is about another corpus, and if a sample of a changed index
    would cut it off.
    """

    def __init__(self, *more: Any, whole: bool):
        self.whole, self.gone = whole, 0
        super().__init__(*more)

    def _look(self, data_type: str) -> tuple[list[dict], list[dict]]:
        """The records in the order of the rows, a bare one for a new passage; those that count."""
        path, rows = self._path(data_type), self.questions[data_type]
        records = read_augmented_file(path) if path.exists() else []
        own, others = self._writers(records)
        made_with = self._own_settings(data_type)
        counts = own and made_with is not None
        if counts and made_with:
            refuse_difference(relative(path), made_with, self.settings, REMEDY)
        held = {one["passages"][0]: one for one in records if one["question"] is None}
        kept = [held.get(row["passages"][0]) for row in rows]
        another = records and not any(kept) and (others or not self.overwrite)
        if another or (counts and not made_with):
            raise InputError(
                f"{relative(path)} holds none of this index's passages, or was not made by this "
                "stage; give another --dataset, or move the file away"
            )
        if (counts or others) and self._longer(records) and not self._in_place(records):
            raise InputError(
                f"the index has changed, and {relative(path)} has {len(records)} passages: --sample"
                f" {len(rows)} would cut it off; leave it out, or give a larger number"
            )
        self.gone = (
            0 if self._longer(records) else len(held) - len({id(one) for one in kept if one})
        )
        aligned = [_without_hit(one) if one else {"augment": []} for one in kept]
        return aligned, [one for one in aligned if "test_id" in one] if counts else []

    def _longer(self, records: list[dict]) -> bool:
        """Whether `records` are more than a sample."""
        return not self.whole and len(records) > len(self.questions[CORPUS])

    def _in_place(self, records: list[dict]) -> bool:
        """Whether `records` begin with the rows, each with its id, title and passage."""
        rows = self.questions[CORPUS]
        pairs = zip(rows, records, strict=False)
        return len(rows) <= len(records) and all(r.items() <= one.items() for r, one in pairs)

    def _waits(self, data_type: str) -> bool:
        """Whether texts are missing, or passages are elsewhere in the index now."""
        if not self.done[data_type]:
            return True
        records = read_augmented_file(self._path(data_type))
        fits = self._longer(records) or len(records) == len(self.questions[data_type])
        # what this model has not come to and what it has dropped look alike beside another one's
        untold = self._writers(records)[1] and not all(self._writers([one])[0] for one in records)
        return untold or not (fits and self._in_place(records))

    def keep_passages(self, candidates: dict[str, list[Candidates]]) -> dict[str, list[Candidates]]:
        """`candidates`, but what was dropped is not tried again."""
        for data_type, rows in candidates.items():
            aligned, done = self._look(data_type)
            alone = done and not self._writers(aligned)[1]
            for number, one in enumerate(aligned if alone else []):
                if "test_id" in one and not one["augment"]:
                    rows[number] = {}
        return candidates

    def _counted(self, passages: int, short: int, topk: int) -> str:
        """What the file holds, in words."""
        words = f", {short} of them without texts: they were dropped" if short else ""
        gone = f"; {self.gone} that the index has no more are left out" if self.gone else ""
        return f"passages{words}{gone}"


def _without_hit(record: dict) -> dict:
    """`record` without ids and titles of its entries, which the index may have changed."""
    entries = [
        {key: value for key, value in entry.items() if key not in HIT_FIELDS}
        for entry in record["augment"]
    ]
    return {**record, "augment": entries}
