"""The passages' adapters at inference: checked, merged question by question, put into the model.

Nothing here is trusted to work by itself: adapters that are missing, were made from other texts or
settings, or change nothing are refused, because they would silently give another experiment's
numbers.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from utils.files import hash_json, relative
from utils.flags import init_folder, shared_flags
from utils.journal import refuse_difference
from utils.layout import passage_folder
from utils.lora.bank import Adapter, LoraBank, merge
from utils.prompting import PromptEncoder
from utils.running import InputError
from utils.store.base import refuse_other_base
from utils.store.folders import fingerprint, load_adapter, read_training

READERS = max(1, min(8, len(os.sched_getaffinity(0)) - 1))  # threads that read adapters


def check_adapters(
    records: list[dict],
    adapters: Path,
    settings: dict,
    encoder: PromptEncoder,
    options,
    only: int | None = None,
) -> str | None:
    """The fingerprint of the base that the passages' adapters were trained from.

    `encoder` is the one of the training prompts; `only` limits this to one record. Raises
    `InputError` unless every adapter stands, was made with these settings and from these texts, all
    from the same base, which is the one that stands, if any does.
    """
    bases = {}
    for did, record in enumerate(records):
        for entry in record["augment"] if only in (None, did) else ():
            folder = passage_folder(adapters, did, entry["pid"])
            if (made_with := read_training(folder)) is None:
                raise InputError(
                    f"there is no adapter in {relative(folder)}; "
                    f"run first: python src/encode.py {shared_flags(options)}"
                )
            bases.setdefault(made_with.get("base"), folder)
            prompts = encoder.passage_examples(
                entry["passage"], entry["rewrite"], entry["qa"], options.augment_parts
            )
            wanted = {**settings, "data": hash_json(prompts)}
            refuse_difference(
                f"the adapter {relative(folder)}",
                {name: made_with.get(name) for name in wanted},
                wanted,
                "give the flags it was made with, or run encode.py with --overwrite",
            )
    if len(bases) > 1:
        first, second = [relative(folder) for folder in bases.values()][:2]
        raise InputError(
            f"{first} and {second} were trained from different base adapters; "
            "run encode.py with --overwrite"
        )
    for base in bases:
        refuse_other_base(base, options)
    return next(iter(bases), None)


def assert_adapters_work(bank: LoraBank, prompt: list[int]) -> None:
    """Raise `InputError` where the loaded adapters leave the next token's logits as they are."""
    ids = torch.tensor([prompt], device=bank.model.device)
    loaded = {name: (layer.A, layer.B) for name, layer in bank.layers.items()}
    bank.set({name: (A[:1], B[:1]) for name, (A, B) in loaded.items()})
    with torch.inference_mode():
        with_adapter = bank.model(ids).logits[0, -1]
        bank.clear()
        without = bank.model(ids).logits[0, -1]
    bank.set(loaded)
    if torch.equal(with_adapter, without):
        raise InputError(
            "the adapters change nothing in the model's output; they were trained with a learning "
            "rate too small to matter or for another model; run encode.py with --overwrite"
        )


class Merger:
    """Puts the merged adapters of a batch of questions into the model."""

    def __init__(
        self, bank: LoraBank, options: argparse.Namespace, adapters: Path, base_hash: str | None
    ):
        """`adapters` is the data type's folder; `base_hash` the fingerprint of their base."""
        self.bank, self.options, self.adapters = bank, options, adapters
        self.shapes = bank.shapes(options.lora_rank)
        self.base = None
        self.checked = False
        if options.merge == "base_once":
            start = init_folder(options)
            self.base = load_adapter(start, self.shapes)
            if fingerprint(self.base) != base_hash:
                raise InputError(
                    f"the passages were not trained from the adapter in {relative(start)}, which "
                    "was replaced; run encode.py with --overwrite"
                )

    def ahead(
        self, batches: list[list[int]], records: list[dict]
    ) -> Iterator[tuple[list[int], Adapter]]:
        """Yield each batch (indices of `records`) with its questions' merged adapters, stacked.

        The next batch's adapters are read and merged while the caller works on this one.
        """
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READERS) as readers:

            def prepared(batch: list[int]) -> Adapter:
                one = partial(self.merged, records=records)
                return self.bank.ready(list(readers.map(one, batch)))

            waiting = ahead.submit(prepared, batches[0]) if batches else None
            for number, batch in enumerate(batches):
                merged = waiting.result()
                if number + 1 < len(batches):
                    waiting = ahead.submit(prepared, batches[number + 1])
                yield batch, merged

    def merged(self, did: int, records: list[dict]) -> Adapter:
        """The merged adapter of question `did` (index of `records`), read from the disk."""
        own = [
            load_adapter(passage_folder(self.adapters, did, entry["pid"]), self.shapes)
            for entry in records[did]["augment"][: self.options.merge_topk]
        ]
        return merge(own, self.options.merge_scale, self.base) if own else self.bank.no_adapter()

    def use(self, merged: Adapter, rows: list[int], prompt: list[int] | None) -> None:
        """Put the `rows` (in sequence) of the stacked `merged` into the model, one row group each.

        Asserts once that the first one, unless `prompt` is None, changes the answer to `prompt`.
        """
        part = slice(rows[0], rows[-1] + 1)  # a view: a list of rows would copy every adapter
        self.bank.set({name: (A[part], B[part]) for name, (A, B) in merged.items()})
        if not self.checked and prompt is not None:
            assert_adapters_work(self.bank, prompt)
            self.checked = True
