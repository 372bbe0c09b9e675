"""The passages' adapters at inference: merged question by question and put into the model."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import prod
from pathlib import Path

import torch

from utils.experiment import Experiment
from utils.files import relative
from utils.lora.bank import Adapter, LoraBank
from utils.lora.merges import MERGES, scaled
from utils.recipe import Recipe
from utils.running import InputError
from utils.store.folders import Content, fingerprint, load_adapter, weights_file

HELD = 1 << 30  # bytes of adapters kept in memory: a passage is found by many questions
READERS = max(1, min(8, len(os.sched_getaffinity(0)) - 1))  # threads that read adapters
REMEDY = "run encode.py with --overwrite"


def check_merge(experiment: Experiment) -> None:
    """Raise `InputError` if passages are too few for `--merge_topk` or lack `--merge`'s needs."""
    recipe = experiment.recipe
    passages = [record["augment"] for rows in experiment.records.values() for record in rows]
    most = max(map(len, passages))
    if (recipe.merge_topk or 0) > most:
        topk = f"--merge_topk {recipe.merge_topk} is more than the {most} passages of a question"
        raise InputError(f"{topk}; leave it out to merge all of them")
    if need := lacking(recipe.merge, [entry for entries in passages for entry in entries]):
        raise InputError(
            f"--merge {recipe.merge} needs the {need} of every passage, but this data_aug is "
            "older or without it; run augment.py --overwrite, or use --merge sum"
        )


def lacking(merge: str, entries: list[dict]) -> str | None:
    """What `merge` needs and one of the `entries` does not have; None if they have all."""
    needs = getattr(MERGES[merge], "needs", ())
    return next((n for n in needs if any(entry.get(n) is None for entry in entries)), None)


def open_merger(
    experiment: Experiment,
    bank: LoraBank,
    data_type: str | None,
    base_hash: str | None,
    held: int = HELD,
) -> "Merger":
    """What merges the adapters of a data type (None: of passages that are given each time);
    `base_hash` is their base's fingerprint, `held` the bytes of adapters kept in memory."""

    def base() -> Adapter:
        loaded = load_adapter(experiment.base_folder, bank.shapes(bank.rank))
        if fingerprint(loaded) != base_hash:
            where = relative(experiment.base_folder)
            raise InputError(f"{where} was replaced since passages grew from it; {REMEDY}")
        return loaded

    passages = experiment.passages(data_type, experiment.asked[data_type]) if data_type else []
    return Merger(bank, experiment.recipe, passages, base, held)


Passages = list[tuple[Path, dict]]  # each an adapter's folder and the entry of `data_aug`


class Merger:
    """Puts the merged adapters of a batch of questions into the model.

    `passages[i]` are question i's passages, `base` loads the adapter that all were trained from.
    """

    def __init__(
        self,
        bank: LoraBank,
        recipe: Recipe,
        passages: list[Passages],
        base: Callable[[], Adapter],
        held: int = HELD,
    ):
        self.bank, self.recipe, self.passages, self.base = bank, recipe, passages, base
        self.shapes = bank.shapes(bank.rank)
        self.checked = False
        size = 4 * sum(prod(shape) for both in self.shapes.values() for shape in both)
        size *= recipe.shared or 1
        self.read = lru_cache(held // size)(self._read)

    def ahead(self, batches: list[list[int]]) -> Iterator[tuple[list[int], Adapter]]:
        """Yield each batch of questions with its merged adapters, stacked; the next is prepared."""
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(READERS) as readers:

            def prepared(batch: list[int]) -> Adapter:
                return self.bank.ready(list(readers.map(self.merged, batch)))

            waiting = [ahead.submit(prepared, batch) for batch in batches[:1]]
            for number, batch in enumerate(batches, start=1):
                merged = waiting.pop().result()
                waiting += [ahead.submit(prepared, after) for after in batches[number : number + 1]]
                yield batch, merged

    def merged(self, did: int) -> Adapter:
        """The merged adapter of question `did`, read from the disk."""
        return self.merge(self.passages[did], self.recipe)

    def merge(self, passages: Passages, recipe: Recipe) -> Adapter:
        """The adapters of `passages`, read from the disk, merged as `recipe` says."""
        passages = passages[: recipe.merge_topk]
        if not passages:
            return self.bank.no_adapter()
        adapters = [self._adapter(folder) for folder, _ in passages]
        merged = MERGES[recipe.merge](adapters, [entry for _, entry in passages], self.base)
        return merged if recipe.merge_scale == 1 else scaled(merged, recipe.merge_scale)

    def _adapter(self, folder: Path) -> Adapter:
        """The adapter in `folder`; one that hard links give to several passages is read once, one
        that was written again is read again."""
        try:
            return self.read(Content.of(weights_file(folder)))
        except OSError:  # of a missing file this says more
            return load_adapter(folder, self.shapes)

    def _read(self, file: Content) -> Adapter:
        loaded = load_adapter(file.path.parent, self.shapes)
        return {name: (A, B.mT.contiguous().mT) for name, (A, B) in loaded.items()}

    def use(self, merged: Adapter, rows: list[int], prompt: list[int] | None) -> None:
        """Put the `rows` (in sequence) of the stacked `merged` into the model, one row group each.
        Asserts once that the first one, unless `prompt` is None, changes the answer to `prompt`."""
        if not self.checked and prompt is not None:
            self._use(merged, rows[:1])
            assert_adapter_works(self.bank, prompt)
            self.checked = True
        self._use(merged, rows)

    def _use(self, merged: Adapter, rows: list[int]) -> None:
        part = slice(rows[0], rows[-1] + 1)  # a view: a list of rows would copy every adapter
        self.bank.set({name: (A[part], B[part]) for name, (A, B) in merged.items()})


def assert_adapter_works(bank: LoraBank, prompt: list[int]) -> None:
    """Raise `InputError` if the adapter in the model leaves the next token's logits as they are."""
    ids = torch.tensor([prompt[-8:]], device=bank.device)  # as good as all of a long prompt
    with torch.inference_mode():
        with_adapter = bank.model(ids).logits[0, -1]
        with bank.cleared():
            without = bank.model(ids).logits[0, -1]
    if torch.equal(with_adapter, without):
        cause = "they were trained with a learning rate too small to matter or for another model"
        raise InputError(f"the adapters change nothing in the model's output; {cause}; {REMEDY}")
