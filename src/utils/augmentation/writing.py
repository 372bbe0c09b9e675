"""Self-Augmentation: the model rewrites passages and writes question lists about them.

Each passage is written about once, however many questions found it (arXiv:2501.15915, section
3.2.1). A piece of work has a key, which is the passage itself; where each question gets texts of
its own, the question is part of it. Work comes in waves: the first holds the best passages of every
question, the next ones what takes the place of passages that were dropped. Samples depend on the
seed and the key alone, never on what ran before or beside it.

A result is `{"rewrite", "qa", "attempts"}`: `qa` is None where the passage is dropped, `rewrite`
too where no question list was valid, `attempts` counts the tries at a list.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Protocol

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.augmentation.records import parse_pairs
from utils.files import hash_json, relative
from utils.journal import Journal
from utils.lora.memory import in_halves
from utils.models import generate
from utils.processes import Processes
from utils.prompting import PromptEncoder
from utils.running import InputError

# A chunk is written and kept as a whole. More batches in one: the failures of all are tried again
# side by side. Fewer: a stop loses less, and many processes are busy to the end.
BATCHES_IN_CHUNK = 4
CHUNKS = 16  # at least, before a chunk grows beyond one batch


# ------------------------------------------------------------------------------------------------
# What is to be written


def work_key(passage: str, question: tuple[str, dict] | None = None) -> str:
    """The key of the texts about `passage`.

    `question` is the data type and the record of the question that gets texts of its own; None
    where all questions share them.
    """
    if question is None:
        return passage
    data_type, record = question
    return json.dumps([data_type, record.get("test_id"), record["question"], passage])


def chosen(candidates: dict[str, str], results: dict[str, dict], topk: int) -> list[str]:
    """The keys of the first `topk` candidates (key -> passage) that are not dropped so far."""
    kept = (k for k in candidates if k not in results or results[k]["qa"] is not None)
    return list(islice(kept, topk))


def next_wave(
    candidates: list[dict[str, str]], results: dict[str, dict], topk: int
) -> dict[str, str]:
    """What is to be written next: key -> passage, empty where every question has its passages.

    A function of the candidates of all questions and of the `results` of earlier waves alone.
    """
    return {
        key: passages[key]
        for passages in candidates
        for key in chosen(passages, results, topk)
        if key not in results
    }


def cut_into_chunks(wave: dict[str, str], batch_size: int) -> list[dict[str, str]]:
    """The wave in chunks of whole batches, the longest passages first, as even as can be.

    A rule about the whole wave and the batch size, never about what is left of it.
    """
    order = sorted(wave, key=lambda key: -len(wave[key]))
    batches = -(-len(order) // batch_size)
    in_chunk = max(1, min(BATCHES_IN_CHUNK, batches // CHUNKS))
    count = -(-batches // in_chunk)
    bounds = [len(order) * number // count for number in range(count + 1)]
    return [{key: wave[key] for key in order[start:end]} for start, end in pairwise(bounds)]


def records_of(
    questions: list[dict], candidates: list[dict[str, str]], results: dict[str, dict], topk: int
) -> list[dict]:
    """The records of `questions`, each with at most `topk` passages and their texts."""
    records = []
    for question, passages in zip(questions, candidates, strict=True):
        keys = chosen(passages, results, topk)
        augment = [
            {"pid": pid, "passage": passages[key]} | {k: results[key][k] for k in ("rewrite", "qa")}
            for pid, key in enumerate(keys)
        ]
        records.append({**question, "passages": [passages[k] for k in keys], "augment": augment})
    return records


# ------------------------------------------------------------------------------------------------
# Writing


class Author(Protocol):
    """What writes texts: a model in this process, or a server."""

    shortened: int  # requests that did not fit into the model and were shortened

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """The wave (key -> passage) in chunks, a function of the whole wave and the settings."""

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """`write(chunk)` for each chunk, as it is finished."""

    def answer(self, kind: str, passages: list[str], seeds: list[int]) -> list[str]:
        """The text that the request `kind` ("pairs" or "rewrite") gets for each passage."""


@dataclass
class LocalModel:
    """Writes with a model in this process, in batches."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: PromptEncoder
    options: argparse.Namespace  # of augment.py: its flags of the group "writing", --batch_size

    @property
    def shortened(self) -> int:
        """Requests that did not fit and were shortened so far."""
        return self.encoder.shortened

    def cut(self, wave: dict[str, str]) -> list[dict[str, str]]:
        """See `Author`."""
        return cut_into_chunks(wave, self.options.batch_size)

    def each(self, write: Callable[[dict], dict], chunks: list[dict]) -> Iterator[dict]:
        """See `Author`; one after the other."""
        return map(write, chunks)

    def answer(self, kind: str, passages: list[str], seeds: list[int]) -> list[str]:
        """See `Author`; the batches are alike in length."""
        encode = {"pairs": self.encoder.pairs_request, "rewrite": self.encoder.rewrite_request}
        prompts = [encode[kind](passage) for passage in passages]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers = [""] * len(prompts)

        def write(batch: list[int]) -> list[str]:
            return generate(
                self.model,
                self.tokenizer,
                [prompts[i] for i in batch],
                self.options.max_new_tokens,
                seeds=[seeds[i] for i in batch],
                temperature=self.options.temperature,
                top_k=self.options.top_k_sampling,
            )

        for start in range(0, len(order), self.options.batch_size):
            batch = order[start : start + self.options.batch_size]
            texts = in_halves(write, batch, "texts", "use a smaller --max_new_tokens")
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text.strip()
        return answers


def write_chunk(chunk: dict[str, str], author: Author, options: argparse.Namespace) -> dict:
    """The texts about the passages of `chunk` (key -> passage).

    Gives `{"results": {key: result}, "shortened": requests that were shortened}`. Question lists
    come first, for all; those that are not valid are tried again side by side; a passage that has
    one gets a rewrite.
    """
    shortened = author.shortened
    pairs: dict[str, list[dict] | None] = dict.fromkeys(chunk)
    attempts = dict.fromkeys(chunk, 0)

    def ask(kind: str, keys: list[str], salt: str) -> dict[str, str]:
        # a sample depends on the seed and on what it is for, never on its neighbours
        seeds = [int(hash_json([options.seed, f"{salt} {key}"])[:15], 16) for key in keys]
        texts = author.answer(kind, [chunk[key] for key in keys], seeds)
        return dict(zip(keys, texts, strict=True))

    for attempt in range(options.max_attempts):
        missing = [key for key in chunk if pairs[key] is None]
        if not missing or (attempt > 0 and options.temperature == 0):
            break  # greedy decoding would only repeat itself
        for key, text in ask("pairs", missing, f"qa {attempt}").items():
            pairs[key] = parse_pairs(text)
            attempts[key] += 1
    kept = [key for key in chunk if pairs[key] is not None]
    rewrites = ask("rewrite", kept, "rewrite")
    results = {
        key: {
            "rewrite": rewrites.get(key),
            "qa": pairs[key] if rewrites.get(key) else None,  # without a rewrite it is dropped too
            "attempts": attempts[key],
        }
        for key in chunk
    }
    return {"results": results, "shortened": author.shortened - shortened}


def write_in_waves(
    candidates: list[dict[str, str]],
    results: dict[str, dict],
    journal: Journal,
    author: Author,
    processes: Processes,
    options: argparse.Namespace,
) -> None:
    """Add to `results` what is written about the candidates of all questions.

    Every process adds the same. A wave follows from the results of the waves before it alone, so
    that it does not matter who wrote what, and when. A job of an array ends where the parts of
    others are missing.
    """
    silent = not (processes.is_main or processes.is_shard)
    with tqdm(total=0, unit="passage", desc="write", disable=silent) as bar:
        while wave := next_wave(candidates, results, options.topk):
            own = processes.share(author.cut(wave))
            written = results_in(journal)
            waiting = [{k: chunk[k] for k in chunk if k not in written} for chunk in own]
            waiting = [chunk for chunk in waiting if chunk]
            there = sum(map(len, own)) - sum(map(len, waiting))
            if not silent:
                bar.total += sum(map(len, own))
                bar.initial += there  # not counted in its speed
                bar.update(there)
                bar.refresh()
            write = partial(write_chunk, author=author, options=options)
            for item in author.each(write, waiting):
                journal.add(item)
                bar.update(len(item["results"]))
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


def summary(
    candidates: list[dict[str, str]],
    results: dict[str, dict],
    stood: dict[str, dict],
    shortened: int,
    options: argparse.Namespace,
) -> str:
    """What was written, and what was saved; `stood` are the results that stood in files before."""
    wanted = [key for passages in candidates for key in chosen(passages, results, options.topk)]
    different = set(wanted)
    written = [result for key, result in results.items() if key not in stood]
    taken = sum(result["qa"] is not None for result in written)
    attempts = sum(result["attempts"] for result in written)
    invalid = attempts - sum(result["rewrite"] is not None for result in written)
    before = len(different & stood.keys())
    lines = [
        f"passages: {len(wanted)} wanted, {len(different)} different, "
        f"{len(wanted) - len(different)} saved by sharing"
        + (f", {before} written before" if before else ""),
        f"written: {taken} taken, {len(written) - taken} dropped, {attempts} attempts at question "
        f"lists, {invalid} of them invalid",
    ]
    if taken < len(written):
        lines.append(
            "a dropped passage is left out for every method, icl too, and the next hit takes its "
            "place; where there are many, raise --max_new_tokens or use a stronger model"
        )
    if shortened:
        lines.append(f"{shortened} requests did not fit into the model and were shortened")
    return "\n".join(lines)
