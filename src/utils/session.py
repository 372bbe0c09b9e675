"""A model that stays open, with its index and adapters: any mix of requests in one batch.

`ask.py` and `serve.py` ask it. Each request has its own recipe: method, merge, scale. Its row of
the batch goes through its own merged adapter; rows of `closed_book` and `icl` through a zero one.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from utils.answering import prompt_of
from utils.batches import FiniteLogits, answer_batch
from utils.experiment import Experiment
from utils.files import hash_json
from utils.lora.bank import Adapter
from utils.lora.memory import prompts_that_fit
from utils.metrics import extract_answer
from utils.models import context_length
from utils.prompting import room_for_prompt
from utils.recipe import IN_PARAMETERS, Recipe
from utils.retrieval import ENGINES
from utils.running import InputError
from utils.serving.requests import MOST_PASSAGES, Refused, Request
from utils.sources import SOURCES
from utils.store.check import require_adapters
from utils.store.merging import HELD, lacking, open_merger
from utils.thoughts import without_thoughts


@dataclass
class Passage:
    """A passage of a request. `entry` is as in `data_aug`, with "rewrite" and "qa" if it was
    encoded; `folder` has its adapter, None without one."""

    entry: dict
    folder: Path | None

    @property
    def id(self) -> str:
        """Its id in the corpus, or a hash of the text of one that has none."""
        return self.entry.get("id") or hash_json(self.entry["passage"])

    @property
    def shown(self) -> dict:
        """What a reply says of it."""
        entry = self.entry
        named = {"id": self.id, "title": entry.get("title", ""), "text": entry["passage"]}
        return {**named, "score": entry.get("score"), "adapter": self.folder is not None}

    @property
    def learnt(self) -> dict:
        """What its adapter was trained on, with what a reply says of it."""
        return {**self.shown, "rewrite": self.entry["rewrite"], "qa": self.entry["qa"]}


@dataclass
class Row:
    """A request that is ready for the model."""

    request: Request
    passages: list[Passage]
    prompt: list[int]
    merged: Adapter | None
    shortened: bool  # whether passages were cut to fit into the model's context


@dataclass
class Answer:
    """What the model wrote; `answer` is the short answer in `text`."""

    text: str
    answer: str
    finish_reason: str  # "stop", or "length" after the request's most tokens
    tokens: int
    bad: InputError | None  # why it is no answer, if the model's numbers were not finite


class Following(FiniteLogits):
    """Tells each row's text while it grows and ends those that are long enough or not wanted."""

    def __init__(self, rows: list[Row], tokenizer, stop: int) -> None:
        super().__init__()
        self.of, self.tokenizer, self.stop = rows, tokenizer, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]`, where a row that must end has its stop token alone."""
        scores = super().__call__(input_ids, scores)
        added = input_ids[:, self.before :].tolist()
        for place, (number, new) in enumerate(zip(self.rows, added, strict=True)):
            tokens = self.written[number] + new
            request = self.of[self.start + number].request
            if request.gone or len(tokens) >= request.recipe.max_new_tokens:
                scores[place] = -torch.inf
                scores[place, self.stop] = 0.0
            elif request.tell and tokens:
                request.tell(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return scores


class Session:
    """The experiment, index and adapters that `recipe` and the index's `options` name.

    Raises `InputError` as `inference.py` does, if an adapter is missing or was made otherwise.
    `adapters` is False if no request will need them; `held` are the bytes of those in memory.
    """

    def __init__(
        self, recipe: Recipe, options: argparse.Namespace, adapters: bool = True, held: int = HELD
    ):
        self.recipe, self.experiment, self.held = recipe, Experiment(recipe), held
        self.index = ENGINES[options.engine].open_index(options)
        longest = context_length(recipe.model_name, recipe.trust_remote_code)
        self.room = room_for_prompt(longest, recipe.max_new_tokens)
        self.encoder = self.experiment.encoder_for(self.room)
        self.base: str | None = None
        place: dict[Path, int] = {}
        if adapters:
            works = SOURCES[recipe.adapters].works(self.experiment)
            self.base = require_adapters(self.experiment, works, self.experiment.settings)
            place = {folder: n for n, work in enumerate(works) for folder in work.folders}
            self.experiment.forget_examples()
        self._collect(place)

    def _collect(self, place: dict[Path, int]) -> None:
        """Gather the encoded passages by text and by id; `place` tells which folders share one
        adapter. Raises `InputError` if an id means two passages."""
        self.by_text: dict[str, Passage] = {}
        held: dict[str, set[int | None]] = {}
        for data_type in self.experiment.records:
            for folder, entry in chain.from_iterable(self.experiment.passages(data_type)):
                bare = {key: entry[key] for key in entry if key != "score"}  # of another question
                own = Passage(bare, folder if place else None)
                self.by_text.setdefault(entry["passage"], own)
                held.setdefault(entry["passage"], set()).add(place.get(folder))
        # passages with more than one adapter, of which the first is used
        self.several = sum(len(adapters) > 1 for adapters in held.values())
        self.by_id = {passage.id: passage for passage in self.by_text.values()}
        if len(self.by_id) < len(self.by_text):
            twice = next(p.id for p in self.by_text.values() if self.by_id[p.id] is not p)
            raise InputError(
                f"the id {twice!r} means two passages of {self.recipe.dataset}: its data types are "
                "of different corpora, or the corpus has an id twice; choose one with --data_type, "
                "or give each passage an id of its own"
            )

    def load(self) -> None:
        """Load the model, and what the index loads at its first search. Raises `InputError` if the
        first adapter changes nothing in the model."""
        self.model = self.experiment.load_model()
        stops = self.model.generation_config.eos_token_id
        self.stops: list[int] = stops if isinstance(stops, list) else [stops]
        self.bank = self.experiment.bank(self.model)
        self.merger = open_merger(self.experiment, self.bank, None, self.base, self.held)
        first = next(iter(self.by_text.values()), None)
        if first:
            self.index.search([first.entry["passage"]], 1)
        if first and first.folder:
            merged = self.merger.merge([(first.folder, first.entry)], Recipe())
            self.merger.use(self.bank.ready([merged]), [0], self.encoder.question("Who", []))
            self.bank.clear()

    def ask(self, requests: list[Request]) -> list[dict]:
        """The answers to all of `requests` with their passages; raises the first one's error."""
        rows = self.prepare(requests)
        for failed in (row for row in rows if isinstance(row, InputError)):
            raise failed
        answers = self.answer(rows)
        for failed in (answer.bad for answer in answers if answer.bad):
            raise failed
        return [
            {
                "passages": [one.shown for one in row.passages],
                "answer": answer.answer,
                "text": answer.text,
                "shortened": row.shortened,
            }
            for row, answer in zip(rows, answers, strict=True)
        ]

    def prepare(self, requests: list[Request]) -> list[Row | InputError]:
        """A row for each request, or why it cannot have one: `Refused` if it is the request's
        fault."""
        rows: list[Row | InputError] = []
        found = self._search(requests)
        for request, hits in zip(requests, found, strict=True):
            try:
                if isinstance(hits, InputError):
                    raise hits
                rows.append(self._row(request, hits))
            except InputError as error:
                rows.append(error)
        return rows

    def _search(self, requests: list[Request]) -> list[list[Passage] | InputError]:
        """The passages that the index finds for each request; longer questions than the model can
        take are not searched."""
        found: list[list[Passage] | InputError] = [[] for _ in requests]
        asked: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            try:
                self._refuse(request)
                if request.reads:
                    asked.setdefault(request.question, []).append(number)
            except InputError as error:
                found[number] = error
        try:
            hits = self.index.search(list(asked), MOST_PASSAGES) if asked else []
        except InputError as error:  # of a server of indexes
            hits = [error] * len(asked)
        for numbers, one in zip(asked.values(), hits, strict=True):
            for number in numbers:
                found[number] = one if isinstance(one, InputError) else list(map(self._hit, one))
        return found

    def _hit(self, hit: dict) -> Passage:
        """A hit of the index with what was made of its text."""
        own = self.by_text.get(hit["text"])
        entry = {**(own.entry if own else {"passage": hit["text"]}), "id": hit["id"]}
        entry |= {"title": hit["title"], "score": hit["score"]}
        return Passage(entry, own and own.folder)

    def _refuse(self, request: Request) -> None:
        """Raise `Refused` for what can be told before a search."""
        if request.raw is None:
            if not request.question.strip():
                raise Refused("the question is empty; ask one")
            self._asked(request, [])
            return
        tokens = self._raw(request)
        if not 0 < len(tokens) <= self.room:
            raise Refused(
                f"the prompt has {len(tokens)} tokens, but must have between 1 and {self.room}; "
                "give another one"
            )
        request.question = self.experiment.tokenizer.decode(tokens, skip_special_tokens=True)

    def _raw(self, request: Request) -> list[int]:
        if isinstance(request.raw, str):
            return self.experiment.tokenizer(request.raw, add_special_tokens=False)["input_ids"]
        known = self.model.get_input_embeddings().num_embeddings
        if any(not 0 <= token < known for token in request.raw):
            raise Refused("a token id of the prompt is not one of the model's; send its text")
        return request.raw

    def _asked(self, request: Request, entries: list[dict]) -> list[int]:
        """The request's prompt; `Refused` if its question is too long."""
        record = {"question": request.question, "augment": entries}
        try:
            return prompt_of(record, request.method, self.encoder)
        except InputError:
            raise Refused(
                f"the question does not fit into the model, whose prompt may have {self.room} "
                "tokens; shorten it"
            ) from None

    def _row(self, request: Request, hits: list[Passage]) -> Row:
        """The request with its passages and its merged adapter."""
        recipe, passages = request.recipe, hits[: request.topk]
        if request.passages is not None and request.reads:
            passages = self._named(request.passages, {hit.id: hit for hit in hits})
        entries, adapters = [one.entry for one in passages], []
        if request.method == "da_icl" and any("qa" not in entry for entry in entries):
            raise Refused("da_icl needs passages that augment.py has written about; use icl")
        if request.method in IN_PARAMETERS:
            adapters = [(one.folder, one.entry) for one in passages if one.folder]
        if need := lacking(recipe.merge, [entry for _, entry in adapters]):
            raise Refused(
                f"merge {recipe.merge} needs the {need} of every passage, which only passages have "
                "that are found for this question; leave out merge"
            )
        before = self.encoder.shortened
        prompt = self._asked(request, entries) if request.raw is None else self._raw(request)
        shortened = self.encoder.shortened > before
        merged = self.merger.merge(adapters, recipe) if adapters else None
        return Row(request, passages, prompt, merged, shortened)

    def _named(self, names: list[str], found: dict[str, Passage]) -> list[Passage]:
        """The passages of these ids, each once: those found for the question, or encoded ones."""
        chosen = {name: found.get(name) or self.by_id.get(name) for name in names}
        for name, passage in chosen.items():
            if passage is None:
                raise Refused(
                    f"there is no passage {name[:80]!r} among those that were encoded and those "
                    "found for this question; name ids of a reply"
                )
        return list(chosen.values())

    def answer(self, rows: list[Row]) -> list[Answer]:
        """What the model says to each row, in batches as large as fit; `load` comes first."""
        prompts, size = [row.prompt for row in rows], self.recipe.batch_size
        if rows and not size:
            size = prompts_that_fit(self.model, prompts, self.recipe.max_new_tokens)
        starts = range(0, len(rows), size or 1)
        return sum((self._batch(rows[start : start + size]) for start in starts), [])

    def _batch(self, rows: list[Row]) -> list[Answer]:
        tokenizer, prompts = self.experiment.tokenizer, [row.prompt for row in rows]
        most = max(row.request.recipe.max_new_tokens for row in rows)
        watch = Following(rows, tokenizer, self.stops[0])
        adapters = ()
        if any(row.merged for row in rows):
            none = self.bank.no_adapter()
            merged = self.bank.ready([row.merged or none for row in rows])
            adapters = partial(self.merger.use, merged, prompt=None), self.bank.keep
        try:
            written = answer_batch(self.model, tokenizer, prompts, most, watch, *adapters)
        finally:  # what failed leaves nothing to the next batch
            self.bank.clear()
        return [
            self._answer(row, text, tokens, number in watch.bad)
            for number, (row, (text, tokens)) in enumerate(zip(rows, written, strict=True))
        ]

    def _answer(self, row: Row, text: str, tokens: list[int], bad: bool) -> Answer:
        most, stops = row.request.recipe.max_new_tokens, self.stops
        ended = next((n for n, token in enumerate(tokens[:most]) if token in stops), None)
        count, reason = (most, "length") if ended is None else (ended + 1, "stop")
        said = without_thoughts(text)
        answer = extract_answer(said, self.recipe.with_cot, self.recipe.answer_cut)
        words = "the model's output is not finite with these adapters; use a smaller scale"
        return Answer(text, answer, reason, count, Refused(words) if bad else None)
