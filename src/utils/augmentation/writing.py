"""Self-Augmentation: the model rewrites passages and writes question lists about them.

Each passage is written about once, however many questions found it (arXiv:2501.15915, section
3.2.1). A piece of work has a key, which is the passage itself; if each question gets its own texts,
the question is part of it. Work comes in waves: the first holds the best passages of every
question, the next ones what takes the place of passages that were dropped. Samples depend on the
seed and the key alone, never on what ran before or beside it.

The candidates of a question are hits by key, best first: a hit has "text" and, from an engine,
"id", "title" and "score". A result is `{"rewrite", "qa", "attempts"}`: `qa` is None if the passage
is dropped, `rewrite` too if no question list was valid, `attempts` counts the tries at a list. With
`--check_answers` it also has how many pairs were `written`, and of these how many had an answer
that is `absent` from the passage or a question that was `repeated`.
"""

import json
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Protocol

import torch
from tqdm import tqdm

from utils.augmentation.constraint import Held, ListForm
from utils.augmentation.records import PAIR_FIELDS, PAIRS, in_passage, parse_pairs, read_pairs
from utils.augmentation.sampling import Sampling
from utils.files import hash_json, relative
from utils.generation import Beginnings, RowProcessor, SeededSampling, generate
from utils.journal import Journal
from utils.lora.memory import in_halves
from utils.models import context_length, load_model, load_tokenizer
from utils.processes import Processes
from utils.prompting import PromptEncoder, PromptSet, room_for_prompt
from utils.recipe import Recipe
from utils.running import InputError
from utils.thoughts import without_thoughts

# A chunk is written and kept as a whole. More batches in one: the places of finished texts are
# taken for longer. Fewer: a stop loses less, and many processes are busy to the end.
BATCHES_IN_CHUNK = 4
CHUNKS = 16  # at least, before a chunk grows beyond one batch

LIST = "question_answer_pairs"  # the request for a question list
COUNTS = ("written", "absent", "repeated")  # of pairs, with --check_answers

Candidates = dict[str, dict]  # work key -> hit


def work_key(passage: str, question: tuple[str, dict] | None = None) -> str:
    """The key of the texts about `passage`. `question` is the data type and the record of the
    question that gets its own texts; None if all questions share them."""
    if question is None:
        return passage
    data_type, record = question
    return json.dumps([data_type, record.get("test_id"), record["question"], passage])


def chosen(candidates: Candidates, results: dict[str, dict], topk: int) -> list[str]:
    """The keys of the first `topk` candidates that are not dropped so far."""
    kept = (k for k in candidates if k not in results or results[k]["qa"] is not None)
    return list(islice(kept, topk))


def next_wave(candidates: list[Candidates], results: dict[str, dict], topk: int) -> dict[str, str]:
    """What is to be written next: key -> passage, empty if every question has its passages. A
    function of the candidates of all questions and of the `results` of earlier waves alone."""
    return {
        key: hits[key]["text"]
        for hits in candidates
        for key in chosen(hits, results, topk)
        if key not in results
    }


class Progress:
    """The bar of stage 1: it moves with every finished text and shows the tokens a second."""

    def __init__(self, silent: bool):
        # at most a line a second, also while no text is finished
        self.bar = tqdm(None, "write", 0, unit="text", miniters=0, mininterval=1.0, disable=silent)
        self.tokens, self.began, self.lock = 0, time.monotonic(), threading.Lock()

    def __call__(self, texts: int, tokens: int) -> None:
        """So many more texts are finished, so many more tokens written; in any thread."""
        with self.lock:
            self.tokens += tokens
            speed = self.tokens / max(time.monotonic() - self.began, 1e-9)
            self.bar.set_postfix_str(f"{speed:.0f} tok/s", refresh=False)
            self.bar.total = max(self.bar.total, self.bar.n + texts)  # grows with failed attempts
            self.bar.update(texts)

    def expect(self, passages: int) -> None:
        """So many passages are left, each with a question list and a rewrite."""
        self.bar.total = self.bar.n + 2 * passages


class Watch(RowProcessor):
    """Tells `progress` how many tokens a generation writes; ended texts go on as `pad`s until they
    leave. Scores stay as they are."""

    def __init__(self, pad: int, progress: Callable[[int, int], None]):
        self.pad, self.progress = pad, progress

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the tokens `input_ids [rows, length]` before the next one."""
        self.progress(0, int((input_ids[:, -1] != self.pad).sum()))
        return scores


@dataclass(frozen=True)
class Request:
    """A text that is asked for: `kind` (see `PromptSet.request`) and seed, for whom (a key)."""

    kind: str
    passage: str
    seed: int
    key: str


Next = Callable[[Request, str], Request | None]  # what is asked for when a text has come


class Author(Protocol):
    """What writes texts: a model in this process, or a server."""

    sampling: Sampling
    progress: Callable[[int, int], None]  # is told of finished texts and of written tokens

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """The wave (key -> passage) in chunks, a function of the whole wave and the settings."""

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """`write(chunk)` for each chunk, as it is finished."""

    def write(self, requests: list[Request], then: Next) -> None:
        """Write what is asked for, and what `then` asks for when it is told a text."""


class LocalModel:
    """Writes with the recipe's model in this process, `batch_size` texts side by side. Raises
    `InputError` if the model cannot be loaded."""

    def __init__(
        self,
        recipe: Recipe,
        prompts: PromptSet,
        sampling: Sampling,
        batch_size: int,
        say: Callable[[str], None],
    ):
        name, trusted = recipe.model_name, recipe.trust_remote_code
        self.sampling, self.batch_size = sampling, batch_size
        self.progress = lambda texts, tokens: None
        self.tokenizer = load_tokenizer(name, trusted)
        room = room_for_prompt(context_length(name, trusted), sampling.max_new_tokens)
        self.encoder = PromptEncoder(self.tokenizer, prompts, False, room)
        self.model = load_model(name, recipe.dtype, self.tokenizer, trusted, recipe.device_map)
        kinds = [kind for kind in (LIST, "rewrite") if kind in prompts.texts]  # a judge's has none
        self.beginnings = Beginnings(self.model, [self.encoder.request(one, "") for one in kinds])
        self.form = None
        if sampling.constrained:
            self.form = self._list_form(prompts, say)

    def _list_form(self, prompts: PromptSet, say: Callable[[str], None]) -> ListForm | None:
        """What holds question lists to their form; None, which is said, if that cannot be done."""
        stops = self.model.generation_config.eos_token_id
        try:
            return ListForm(
                self.tokenizer,
                stops,
                prompts.pair_order or PAIR_FIELDS,
                prompts.texts.get("question_openings", []),
                self.sampling.check_answers,
            )
        except ValueError as error:
            say(f"question lists are not constrained: no grammar for this tokenizer ({error})")
            return None

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """See `Author`: of about whole batches, as even as can be, the longest passages first."""
        order = sorted(wave, key=lambda key: -len(wave[key]))
        batches = -(-len(order) // self.batch_size)
        in_chunk = max(1, min(BATCHES_IN_CHUNK, batches // CHUNKS))
        count = -(-batches // in_chunk)
        bounds = [len(order) * number // count for number in range(count + 1)]
        return [{key: wave[key] for key in order[start:end]} for start, end in pairwise(bounds)]

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """See `Author`; one after the other."""
        return map(write, chunks)

    def write(self, requests: list[Request], then: Next) -> None:
        """See `Author`; those that wait take the places of finished ones."""
        asked, held = list(requests), []

        def form(sampling: SeededSampling | None) -> Held:
            held.append(self.form.held([self._passage(one) for one in asked])(sampling))
            return held[0]

        def more(row: int, text: str) -> tuple[list[int], int] | None:
            self.progress(1, 0)
            one = then(asked[row], text.strip())
            if one is None:
                return None
            asked.append(one)
            if held:
                held[0].add(self.form.matcher(self._passage(one)))
            return self._prompt(one), one.seed

        generate(
            self.model,
            self.tokenizer,
            [self._prompt(one) for one in asked],
            self.sampling.max_new_tokens,
            seeds=[one.seed for one in asked],
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k_sampling,
            watch=Watch(self.tokenizer.pad_token_id, self.progress),
            held=self.form and form,
            width=self.batch_size,
            more=more,
            beginnings=self.beginnings,
        )

    def _prompt(self, request: Request) -> list[int]:
        return self.encoder.request(request.kind, request.passage)

    def _passage(self, request: Request) -> str | None:
        """What a list is about; None for a text without a form."""
        return request.passage if request.kind == LIST else None


def write_chunk(chunk: dict[str, str], author: Author) -> dict:
    """The texts about the passages of `chunk` (key -> passage): `{"results": {key: result}}`."""
    results: dict[str, dict] = {}

    def write(keys: list[str]) -> list[str]:
        waiting = {key: texts_about(chunk[key], key, author.sampling) for key in keys}

        def then(request: Request, text: str) -> Request | None:
            try:
                return waiting[request.key].send(without_thoughts(text))
            except StopIteration as finished:
                results[request.key] = finished.value
                return None

        author.write([next(asking) for asking in waiting.values()], then)
        return keys

    in_halves(write, list(chunk), "texts", "use a smaller --max_new_tokens")
    return {"results": {key: results[key] for key in chunk}}


def texts_about(passage: str, key: str, sampling: Sampling) -> Generator[Request, str, dict]:
    """Ask for one text about `passage` after the other, and return the result.

    A question list that is not valid is tried again; a passage that has one gets a rewrite. More
    than three pairs are those of further lists, the new questions alone; a passage that gets fewer
    in all attempts keeps them. With `--check_answers` the good pairs of a list are kept, and the
    next attempt adds to them.
    """

    def ask(kind: str, salt: str) -> Request:
        # a sample depends on the seed and on what it is for, never on its neighbours
        seed = int(hash_json([sampling.seed, f"{salt} {key}"])[:15], 16)
        return Request(kind, passage, seed, key)

    counts = dict.fromkeys(("attempts", *(COUNTS if sampling.check_answers else ())), 0)
    result = {"rewrite": None, "qa": None, **counts}
    lists = -(-sampling.pairs // PAIRS)
    # greedy decoding would only repeat itself
    for attempt in range(lists * sampling.max_attempts if sampling.temperature else 1):
        if len(result["qa"] or []) >= sampling.pairs:
            break
        text = yield ask(LIST, f"qa {attempt}")
        new = checked(result, text, passage) if sampling.check_answers else parse_pairs(text)
        pairs = joined(result["qa"], new, sampling.pairs)
        result.update(qa=pairs, attempts=attempt + 1)
    if len(result["qa"] or []) < PAIRS:
        result["qa"] = None
    if result["qa"]:
        text = yield ask("rewrite", "rewrite")
        # without a rewrite it is dropped too
        result.update(rewrite=text, qa=result["qa"] if text else None)
    return result


def checked(result: dict, text: str, passage: str) -> list[dict]:
    """The pairs in `text` whose answer occurs in `passage` and whose question is not among those of
    `result`, which counts the others."""
    pairs = read_pairs(text)
    asked, good = {pair["question"].casefold() for pair in result["qa"] or []}, []
    for pair in pairs:
        question = pair["question"].casefold()
        if not in_passage(pair["answer"], passage):
            result["absent"] += 1
        elif question in asked:
            result["repeated"] += 1
        else:
            asked.add(question)
            good.append(pair)
    result["written"] += len(pairs)
    return good


def joined(pairs: list[dict] | None, more: list[dict] | None, most: int) -> list[dict] | None:
    """The first `most` of `pairs` and of those of `more` that ask something else."""
    if not pairs or not more:
        return pairs or (more and more[:most])
    asked = {pair["question"].casefold() for pair in pairs}
    new = [pair for pair in more if pair["question"].casefold() not in asked]
    return (pairs + new)[:most]


def write_in_waves(
    candidates: list[Candidates],
    results: dict[str, dict],
    journal: Journal,
    author: Author,
    processes: Processes,
    topk: int,
    begin: Callable[[], None],
) -> None:
    """Add to `results` what is written about the candidates of all questions.

    Every process adds the same: a wave follows from the results of the waves before it alone. A job
    of an array ends when the parts of others are missing. After new texts comes `begin()`.
    """
    author.progress = Progress(silent=not (processes.is_main or processes.is_shard))
    with author.progress.bar:
        while wave := next_wave(candidates, results, topk):
            written = results_in(journal)
            own = [
                {key: passage for key, passage in chunk.items() if key not in written}
                for chunk in processes.share(author.cut(wave))
            ]
            left = sum(map(len, own))
            author.progress.expect(left)
            for item in author.each(partial(write_chunk, author=author), list(filter(None, own))):
                journal.add(item)
                if any(result["qa"] for result in item["results"].values()):
                    begin()
                author.progress.expect(left := left - len(item["results"]))
            processes.wait()
            journal.reread()
            written = results_in(journal)
            if wave.keys() - written.keys():
                if processes.is_shard:
                    return
                raise InputError(
                    f"{relative(journal.path)} lost what was written, another run of the same work "
                    "may have removed it; start the same command again"
                )
            results |= {key: written[key] for key in wave}


def results_in(journal: Journal) -> dict[str, dict]:
    """What the journal holds by work key."""
    return {key: result for item in journal.items for key, result in item["results"].items()}


def refuse_nothing_taken(
    results: dict[str, dict], journal: Journal, recipe: Recipe, max_new_tokens: int
) -> None:
    """Raise `InputError` if every passage was dropped, and forget that they were. The journal stays
    if it holds texts of a stopped run of other questions."""
    if any(result["qa"] for result in results.values()):
        return
    if not any(result["qa"] for result in results_in(journal).values()):
        journal.remove()
    raise InputError(
        f"none of {len(results)} passages got a valid list of three question-answer pairs, so "
        f"nothing was saved; does {recipe.model_name} know the prompts of --prompts "
        f"{recipe.prompts} (the demo model needs --prompts demo)? Else raise --max_new_tokens "
        f"(now {max_new_tokens}), or use a stronger model"
    )


def summary(
    candidates: list[Candidates], results: dict[str, dict], before: dict[str, dict], topk: int
) -> str:
    """What was written, and what was saved; `before` are the results that files held already."""
    wanted = [key for hits in candidates for key in chosen(hits, results, topk)]
    different = len(set(wanted))
    written = [result for key, result in results.items() if key not in before]
    taken = sum(result["qa"] is not None for result in written)
    pairs, absent, repeated = (sum(r.get(name, 0) for r in written) for name in COUNTS)
    checks = (
        f"\nof {pairs} pairs {absent / max(pairs, 1):.1%} had an answer that is not in the passage"
    )
    checks += f", {repeated / max(pairs, 1):.1%} a question that was there already"
    return (
        f"passages: {len(wanted)} wanted, {different} different, {len(wanted) - different} saved "
        f"by sharing\nwritten: {taken} taken, {len(written) - taken} dropped for every method, "
        f"{sum(result['attempts'] for result in written)} attempts at question lists"
    ) + (checks if pairs else "")
