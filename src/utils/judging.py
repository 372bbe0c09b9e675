"""A model's verdicts on answers, right or not right: `judge.json` beside `predict.json`."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils.augmentation.writing import Author, LocalModel, Request
from utils.files import read_json, read_object, relative, write_json
from utils.journal import Journal, check_journal, refuse_difference, remove_journal
from utils.lora.memory import in_halves
from utils.prompting import JUDGE, PromptSet
from utils.provenance import PROVENANCE, provenance
from utils.reporting.verdicts import (
    VERDICTS,
    judged,
    read_verdicts,
    verdict_in,
    verdicts_of,
)
from utils.running import InputError
from utils.thoughts import without_thoughts

JOURNAL = ".judge.journal"
AS_IT_IS = PromptSet("", {JUDGE: "{passage}"})  # of an author: the message is whole already


def refuse_long(author: LocalModel, messages: list[str]) -> None:
    """Raise `InputError` if a message does not fit into the judge's context: its end, which asks
    for the verdict, would be cut off."""
    for message in dict.fromkeys(messages):
        author.encoder.request(JUDGE, message)
        if author.encoder.shortened:
            raise InputError(
                f"the prompt {message[:80]!r}... is longer than the judge's context has left "
                f"({author.encoder.max_length} tokens); use another judge, or shorten the prompt "
                "set's text for it"
            )


class Judgement:
    """The verdicts on the result in `folder`: those of the judge whose settings are `judge`, asked
    with `prompts`. `messages` are what it is asked, in the order of the rows."""

    def __init__(self, folder: Path, prompts: PromptSet, judge: dict):
        self.folder = folder
        self.rows = read_json(folder / "predict.json", "the predictions")
        self.settings = {**judge, "judged": judged(self.rows)}
        self.messages = [self._message(row, prompts) for row in self.rows]

    def _message(self, row: dict, prompts: PromptSet) -> str:
        answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        return prompts.judgement(row["question"], answers, without_thoughts(row["text"]))

    def check(self, overwrite: bool) -> dict[str, str] | None:
        """What the judge said, by message, if all of it is there; None if not. Raises `InputError`
        if other settings made what is there, unless `overwrite`, which forgets it."""
        path = self.folder / VERDICTS
        if overwrite:
            remove_journal(self.folder / JOURNAL)
            return None
        if not path.exists():
            check_journal(self.folder / JOURNAL, self.settings)
            return None
        made = read_object(path, "the verdicts")
        made_with = {name: made.get(name) for name in self.settings}
        remedy = "use the same judge, delete that file, or give --overwrite to judge all again"
        refuse_difference(relative(path), made_with, self.settings, remedy)
        with suppress(InputError):  # of a kill before its removal
            remove_journal(self.folder / JOURNAL)
        texts = [row["text"] for row in verdicts_of(made, self.rows, path)]
        return dict(zip(self.messages, texts, strict=True))

    def forget(self) -> None:
        """Remove the verdicts that are there, before others come: `--overwrite`."""
        (self.folder / VERDICTS).unlink(missing_ok=True)

    def ask(
        self,
        author: Author,
        known: dict[str, str],
        begin: Callable[[], None],
        tell: Callable[[int], None],
    ) -> None:
        """Ask `author` what neither `known` nor the journal holds, add it to `known`, and save.
        After new verdicts comes `begin()`; `tell` how many rows they settle."""
        with Journal(self.folder / JOURNAL, self.settings) as journal:
            said = known | {message: text for item in journal.items for message, text in item}
            wave = {one: one for one in self.messages if one not in said}
            tell(sum(one in said for one in self.messages))

            def answered(chunk: dict[str, str]) -> list:
                texts: dict[str, str] = {}

                def write(messages: list[str]) -> list[str]:
                    requests = [Request(JUDGE, message, 0, message) for message in messages]
                    author.write(requests, lambda request, text: texts.update({request.key: text}))
                    return messages

                in_halves(write, list(chunk), "verdicts", "use a smaller --batch_size")
                return [(message, texts[message]) for message in chunk]

            for item in author.each(answered, author.cut(wave) if wave else []):
                journal.add(item)
                begin()
                said |= item
                asked = {message for message, _ in item}
                tell(sum(one in asked for one in self.messages))
            self._save([said[message] for message in self.messages])
            journal.remove()
        known |= {message: said[message] for message in self.messages}

    def summary(self) -> str:
        """How many answers are right in the judge's eyes."""
        verdicts = read_verdicts(self.folder, self.rows)
        unread = verdicts.count(None)
        words = f"; {unread} verdicts say neither yes nor no and count as not right"
        share = f"{verdicts.count(True) / len(verdicts):.4f} right of {len(verdicts)}"
        return f"judge {share} {relative(self.folder / VERDICTS)}" + (words if unread else "")

    def _save(self, texts: list[str]) -> None:
        """Write `judge.json`."""
        both = zip(self.rows, texts, strict=True)
        verdicts = [
            {n: row[n] for n in ("test_id", "question")} | {"right": verdict_in(text), "text": text}
            for row, text in both
        ]
        made = {**self.settings, PROVENANCE: provenance(), "verdicts": verdicts}
        write_json(self.folder / VERDICTS, made)
