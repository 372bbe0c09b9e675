"""The files in `data_aug/` that one run of `augment.py` makes: what stands, what is added to it.

A file can hold the work of several models, each under its own keys. Beside it stands a hidden file
with the settings of each model, and in the folder one journal of each model's unfinished work.
"""

import argparse
from pathlib import Path

from utils.augmentation.records import model_keys
from utils.augmentation.writing import results_in, work_key
from utils.files import hash_json, read_object, relative, write_json
from utils.journal import Journal, journal_parts, refuse_difference, remove_journal
from utils.layout import augmented_file, folder_name
from utils.questions import raise_problems, read_records
from utils.running import InputError

UNFINISHED = "unfinished"  # in the settings of a file whose texts of this model do not count (yet)


class AugmentedFiles:
    """The files of one run, one for each data type in `questions`.

    `waiting` lists the data types whose file must still be made; `results` holds what this model
    wrote into files that stand with the same settings (see `writing.py`), by work key. The files
    of other data types count too: a passage that was written about for one of these is done.

    A larger `--sample` goes on from a smaller one where no other model wrote into the file; the
    work of a smaller one stands in the file of a larger.

    Raises `InputError` where a file is about other questions, was made with other settings or by
    something else. With `--overwrite` this model's texts do not count, and other questions are
    refused only where another model has written about them.
    """

    def __init__(
        self, options: argparse.Namespace, questions: dict[str, list[dict]], settings: dict
    ):
        self.options, self.questions, self.settings = options, questions, settings
        self.model = folder_name(options.model_name)
        self.rewrite_key, self.pairs_key = model_keys(options.model_name)
        folder = augmented_file(options.dataset, "total").parent
        self.journal = folder / f".{self.model}.journal"
        self.waiting: list[str] = []
        self.results: dict[str, dict] = {}
        self.kept: dict[str, list[dict]] = {}  # of a smaller sample's file that is written anew
        for data_type in questions:
            self._existing_records(data_type)
        for data_type, asked in questions.items():
            results, records = ({}, []) if options.overwrite else self._standing(data_type)
            self.results |= results
            if len(records) < len(asked):
                self.waiting.append(data_type)
                self.kept[data_type] = records
        if not options.overwrite:
            self.results |= self._results_of_other_types(folder)

    def path(self, data_type: str) -> Path:
        """Where the file of `data_type` stands."""
        return augmented_file(self.options.dataset, data_type)

    def _settings_path(self, path: Path) -> Path:
        return path.with_name(f".{path.stem}.{self.model}.settings")

    def _asked(self, data_type: str) -> dict:
        """What the work on `data_type` is, settings before data."""
        asked = [[record["question"], record["answer"]] for record in self.questions[data_type]]
        return {**self.settings, "questions": hash_json(asked)}

    def _existing_records(self, data_type: str) -> list[dict]:
        """The records that stand, to which this model's texts are added; [] for a new file."""
        path, questions = self.path(data_type), self.questions[data_type]
        records = _read(path) if path.exists() else []
        if not records or [r["question"] for r in records] == [q["question"] for q in questions]:
            return records
        keys = {key for r in records for entry in r["augment"] for key in entry}
        others = any(key.endswith("_qa") and key != self.pairs_key for key in keys)
        more, fewer = len(records) < len(questions), len(records) > len(questions)
        begins_alike = all(map(_is_same_question, records, questions))
        if not others and (self.options.overwrite or (begins_alike and more)):
            return []
        made_with = self._made_with(path) or {}
        written_now = self.options.overwrite or made_with.get(UNFINISHED)
        if begins_alike and fewer and self.pairs_key in keys and not written_now:
            return records
        if begins_alike and not others and made_with == {UNFINISHED: True}:
            return []  # a stopped --overwrite goes on
        raise InputError(
            f"{relative(path)} holds {len(records)} questions, not the {len(questions)} of this "
            "run; use the same --data_path and --sample, --overwrite if no other model wrote into "
            "it, or move the file away"
        )

    def _made_with(self, path: Path) -> dict | None:
        """The settings with which this model's texts in the file at `path` were made, if known."""
        settings_path = self._settings_path(path)
        return read_object(settings_path, "the settings file") if settings_path.exists() else None

    def keep_passages(
        self, data_type: str, candidates: list[dict[str, str]]
    ) -> list[dict[str, str]]:
        """`candidates` where a smaller sample has chosen among them: its questions keep theirs."""
        kept = [
            {self._key(data_type, record, e["passage"]): e["passage"] for e in record["augment"]}
            for record in self.kept.get(data_type, [])
        ]
        return kept + candidates[len(kept) :]

    def replaced(self) -> dict[str, dict]:
        """The results that stand in a smaller sample's file alone, which is written anew."""
        results = {}
        for data_type, records in self.kept.items():
            results |= self._results_in(self.path(data_type), records)
        return results

    def _key(self, data_type: str, record: dict, passage: str) -> str:
        own = (data_type, record) if self.options.write_per_question else None
        return work_key(passage, own)

    def _results_in(self, path: Path, records: list[dict]) -> dict[str, dict]:
        """What this model wrote into `records`, those of the file at `path`, by work key."""
        return {
            self._key(path.stem, record, entry["passage"]): {
                "rewrite": entry[self.rewrite_key],
                "qa": entry[self.pairs_key],
            }
            for record in records
            for entry in record["augment"]
            if self.rewrite_key in entry and self.pairs_key in entry
        }

    def _standing(self, data_type: str) -> tuple[dict[str, dict], list[dict]]:
        """What this model wrote into the file of `data_type`, and the records there.

        Nothing where it wrote nothing, or where that does not count (yet).
        """
        path = self.path(data_type)
        records = _read(path) if path.exists() else []
        results = self._results_in(path, records)
        if not results:
            return {}, []
        if (made_with := self._made_with(path)) is None:
            raise InputError(
                f"{relative(path)} holds texts of {self.options.model_name} that this stage did "
                "not write; go on with encode.py, or use --overwrite to replace them"
            )
        if made_with.get(UNFINISHED):
            return {}, []
        asked = self._asked(data_type)
        if len(records) != len(self.questions[data_type]):  # they were compared one by one
            asked["questions"] = made_with.get("questions")
        refuse_difference(
            relative(path), made_with, asked, "use the same settings, or --overwrite to start anew"
        )
        return results, records

    def _results_of_other_types(self, folder: Path) -> dict[str, dict]:
        """What this model wrote with the same settings for data types that are not in this run."""
        results = {}
        ending = f".{self.model}.settings"
        for settings_path in sorted(folder.glob(f".*{ending}")):
            path = folder / f"{settings_path.name[1 : -len(ending)]}.json"
            if path.stem in self.questions or not path.exists():
                continue
            try:
                made_with = read_object(settings_path, "the settings file")
                made_with.pop("questions", None)
                refuse_difference(relative(path), made_with, self.settings, "")
                results |= self._results_in(path, _read(path))
            except InputError:  # none of this run's business
                continue
        return results

    def forget(self) -> None:
        """`--overwrite`: this model's texts and unfinished work count no more."""
        for path in map(self.path, self.questions):
            if path.exists():
                write_json(self._settings_path(path), {UNFINISHED: True})
        remove_journal(self.journal)

    def remove_old_journal(self) -> None:
        """Remove a journal that a kill left although all that it holds stands in the files."""
        if not journal_parts(self.journal):
            return
        try:
            with Journal(self.journal, self.settings) as journal:
                self.remove_finished(journal, self.results)
        except InputError:  # another run is at work, or it is the unfinished work of one
            pass

    def remove_finished(self, journal: Journal, results: dict[str, dict]) -> None:
        """Remove the journal, unless a stopped run of other questions left more in it than stands.

        `results` are those that stand in the files.
        """
        held = results_in(journal).items()
        if all(key in results for key, result in held if result["qa"] is not None):
            journal.remove()

    def save(self, data_type: str, records: list[dict]) -> None:
        """Write `records` (see `records_of`) beside what other models wrote.

        Passages stand in the order in which they were retrieved: `pid` only names their adapters.
        Raises `InputError` where another model's passages stand in another order.
        """
        path, existing = self.path(data_type), self._existing_records(data_type)
        merged = []
        for index, record in enumerate(records):
            old = existing[index]["augment"] if existing else []
            entries = self._merge(old, record["augment"], f"{relative(path)}, record {index}")
            passages = [entry["passage"] for entry in entries]
            merged.append({**record, "passages": passages, "augment": entries})
        settings_path, asked = self._settings_path(path), self._asked(data_type)
        write_json(settings_path, {**asked, UNFINISHED: True})
        write_json(path, merged)
        write_json(settings_path, asked)

    def _merge(self, old: list[dict], new: list[dict], where: str) -> list[dict]:
        """The passages of a record: those of other models in `old`, and this model's in `new`."""
        own = (self.rewrite_key, self.pairs_key)
        others = [{k: v for k, v in entry.items() if k not in own} for entry in old]
        others = [entry for entry in others if len(entry) > 2]  # has more than pid and passage
        entries: list[dict] = []
        next_pid = max((entry["pid"] for entry in others), default=-1) + 1
        for written in new:
            passage = written["passage"]
            place = next((i for i, e in enumerate(others) if e["passage"] == passage), None)
            if place is not None:
                entries += others[: place + 1]
                del others[: place + 1]
            elif all(entry["passage"] != passage for entry in entries):
                entries.append({"pid": next_pid, "passage": passage})
                next_pid += 1
            else:
                raise InputError(
                    f"{where}: another model's passages were retrieved in another order; use the "
                    "same index for all models, or move the file away"
                )
            entries[-1] |= {self.rewrite_key: written["rewrite"], self.pairs_key: written["qa"]}
        return entries + others


def _is_same_question(record: dict, question: dict) -> bool:
    return all(record.get(name) == question[name] for name in ("question", "answer"))


def _read(path: Path) -> list[dict]:
    """The records at `path`; `InputError` where they are not those of this stage."""
    records = read_records(path)
    problems = [
        f"record {index} has not the question and passages that this stage writes"
        for index, record in enumerate(records)
        if not (
            isinstance(record.get("question"), str)
            and isinstance(record.get("augment"), list)
            and all(
                isinstance(entry, dict) and isinstance(entry.get("passage"), str)
                for entry in record["augment"]
            )
        )
    ]
    raise_problems(path, problems, "correct these, or move the file away")
    return records
