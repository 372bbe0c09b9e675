"""The files in `data_aug/` that one run of `augment.py` makes: what is there, what is added to it.

A file can hold the work of several models, each under its own keys. Beside it is a hidden file with
the settings of each model, and in the folder one journal of each model's unfinished work. Settings
say `UNFINISHED` while texts are replaced or written, and the journal is removed last: a kill in
between loses nothing, and the same command goes on.
"""

from contextlib import suppress
from pathlib import Path

from utils.augmentation.records import HIT_FIELDS, UNFINISHED, model_keys, read_augmented_file
from utils.augmentation.writing import Candidates, chosen, results_in, work_key
from utils.files import read_object, relative, write_json
from utils.journal import Journal, journal_parts, refuse_difference
from utils.layout import augmented_file, folder_name
from utils.running import InputError

REMEDY = "use the same settings, or --overwrite to start again"


class AugmentedFiles:
    """The files of one run, one for each data type in `questions`.

    `waiting` lists the data types whose file must still be made; `results` holds what `model` wrote
    into the files with the same `settings` (see `writing.py`), by work key. A larger `--sample`
    goes on from a smaller one if no other model wrote into the file; the work of a smaller one is
    in the file of a larger.

    Raises `InputError` if a file is about other questions, was made with other settings or by
    something else. With `overwrite` this model's texts do not count, and other questions are
    refused only if another model has written about them.
    """

    def __init__(
        self,
        dataset: str,
        model: str,
        questions: dict[str, list[dict]],
        settings: dict,
        overwrite: bool = False,
    ):
        self.dataset, self.model = dataset, folder_name(model)
        self.questions, self.settings, self.overwrite = questions, settings, overwrite
        self.begun = False
        self.rewrite_key, self.pairs_key = model_keys(model)
        self.journal = self._path("total").with_name(f".{self.model}.journal")
        self.done = {data_type: self._look(data_type)[1] for data_type in questions}
        self.results: dict[str, dict] = {}
        for data_type in questions:
            self.results |= self._results_in(data_type)
        self.waiting = [data_type for data_type in questions if self._waits(data_type)]

    def _path(self, data_type: str) -> Path:
        return augmented_file(self.dataset, data_type)

    def _settings_path(self, data_type: str) -> Path:
        return self._path(data_type).with_name(f".{folder_name(data_type)}.{self.model}.settings")

    def _key(self, data_type: str, record: dict, passage: str) -> str:
        per_question = self.settings.get("write_per_question")
        return work_key(passage, (data_type, record) if per_question else None)

    def _waits(self, data_type: str) -> bool:
        """Whether the file of a data type must still be made."""
        return len(self.done[data_type]) < len(self.questions[data_type])

    def _own_settings(self, data_type: str) -> dict | None:
        """What made this model's texts, {} if nothing says it; None: they do not count."""
        path = self._settings_path(data_type)
        made_with = read_object(path, "the settings file") if path.exists() else {}
        return None if self.overwrite or made_with.get(UNFINISHED) else made_with

    def _look(self, data_type: str) -> tuple[list[dict], list[dict]]:
        """The records to which texts are added ([]: the file is made new), and those that count."""
        path, questions = self._path(data_type), self.questions[data_type]
        records = read_augmented_file(path) if path.exists() else []
        own, others = self._writers(records)
        made_with = self._own_settings(data_type)
        if own and made_with is not None:
            if made_with:
                made_with.pop("questions", None)  # commit 4200079 and before kept a hash of them
                refuse_difference(relative(path), made_with, self.settings, REMEDY)
            if made_with and _alike(records, questions, "question", "answer"):
                if len(records) >= len(questions):
                    return records, records
                if not others:
                    return [], records
        elif len(records) == len(questions) and _alike(records, questions, "question"):
            return records, []
        elif not others:
            return [], []
        raise InputError(
            f"{relative(path)} was not made by this stage with these questions and answers; use "
            "the same --data_path and --sample, --overwrite if no other model wrote into it, or "
            "move the file away"
        )

    def _writers(self, records: list[dict]) -> tuple[bool, bool]:
        """Whether this model has written into `records`, and whether another one has."""
        keys = {key for record in records for entry in record["augment"] for key in entry}
        written = {key for key in keys if key.endswith("_qa")}
        return self.pairs_key in written, bool(written - {self.pairs_key})

    def _results_in(self, data_type: str) -> dict[str, dict]:
        """What this model wrote into the records that count, by work key."""
        return {
            self._key(data_type, record, entry["passage"]): {
                "rewrite": entry[self.rewrite_key],
                "qa": entry[self.pairs_key],
            }
            for record in self.done[data_type]
            for entry in record["augment"]
            if {self.rewrite_key, self.pairs_key} <= entry.keys()
        }

    def keep_passages(self, candidates: dict[str, list[Candidates]]) -> dict[str, list[Candidates]]:
        """`candidates`, but the questions of a smaller sample keep those that it chose."""
        for data_type, rows in candidates.items():
            for number, record in enumerate(self.done[data_type]):
                passages = [entry["passage"] for entry in record["augment"]]
                keys = {self._key(data_type, record, passage): passage for passage in passages}
                hits = rows[number]
                rows[number] = {k: hits.get(k, {"text": passage}) for k, passage in keys.items()}
        return candidates

    def begin(self) -> None:
        """After the first new texts with `overwrite`: this model's old ones count no more."""
        for data_type in self.questions if self.overwrite and not self.begun else ():
            if self._path(data_type).exists():
                write_json(self._settings_path(data_type), {UNFINISHED: True})
        self.begun = True

    def save(
        self, data_type: str, candidates: list[Candidates], results: dict[str, dict], topk: int
    ) -> str:
        """Write the texts about the first `topk` candidates of each question that have some. They
        come beside what other models wrote. Gives a line that says what was saved."""
        path, (existing, _) = self._path(data_type), self._look(data_type)
        records, count, short = [], 0, 0
        for number, question in enumerate(self.questions[data_type]):
            keys = chosen(candidates[number], results, topk)
            written = [(candidates[number][key], results[key]) for key in keys]
            augment = self._merge(existing[number]["augment"] if existing else [], written)
            passages = [entry["passage"] for entry in augment]
            passages = question.get("passages", passages)
            records.append({**question, "passages": passages, "augment": augment})
            count, short = count + len(keys), short + (len(keys) < topk)
        if not self.done[data_type]:  # else what is there, and what comes, has these settings
            write_json(self._settings_path(data_type), {UNFINISHED: True})
        write_json(path, records)
        write_json(self._settings_path(data_type), self.settings)
        return f"{relative(path)}: {len(records)} {self._counted(count, short, topk)}"

    def _counted(self, passages: int, short: int, topk: int) -> str:
        """What a file holds, in words; `short` questions have fewer passages than `topk`."""
        missing = f"; {short} questions have fewer than {topk}" if short else ""
        return f"questions, {passages} passages{missing}"

    def _merge(self, old: list[dict], written: list[tuple[dict, dict]]) -> list[dict]:
        """The passages of a record: those of other models in `old`, and this model's, `written`.

        Each model's passages are in the order in which they were retrieved: `pid` only names their
        adapters. A passage of several models is there once, with the hit that it has, unless they
        retrieved it in another order.
        """
        own = (self.rewrite_key, self.pairs_key)
        others = [{k: v for k, v in entry.items() if k not in own} for entry in old]
        others = [entry for entry in others if any(key.endswith("_qa") for key in entry)]
        next_pid = max((entry["pid"] for entry in others), default=-1) + 1
        entries: list[dict] = []
        for hit, result in written:
            shared = {"pid": next_pid, "passage": hit["text"]}
            place = next((i for i, e in enumerate(others) if e["passage"] == hit["text"]), None)
            if place is None:
                next_pid += 1
            else:
                shared = others[place]
                entries += others[:place]
                del others[: place + 1]
            found = {field: hit[field] for field in HIT_FIELDS if field in hit}
            entry = {"pid": shared["pid"], "passage": hit["text"], **found, **shared}
            entries.append(
                {**entry, self.rewrite_key: result["rewrite"], self.pairs_key: result["qa"]}
            )
        return entries + others

    def remove_finished(self, journal: Journal, results: dict[str, dict]) -> None:
        """Remove the journal, unless a stopped run of other questions left more in it. `results`
        are those that are in the files."""
        held = results_in(journal).items()
        if all(key in results for key, result in held if result["qa"] is not None):
            journal.remove()

    def remove_old_journal(self) -> None:
        """Remove a journal that a kill left although all that it holds is in the files."""
        with suppress(InputError):  # another run is at work, or one with other settings was stopped
            if journal_parts(self.journal):
                with Journal(self.journal, self.settings) as journal:
                    self.remove_finished(journal, self.results)


def _alike(records: list[dict], questions: list[dict], *fields: str) -> bool:
    """Whether the shorter list is the beginning of the other one, in these fields."""
    pairs = zip(records, questions, strict=False)
    return all(record.get(name) == asked[name] for record, asked in pairs for name in fields)
