"""Merged adapters as PEFT folders for other programs: one question's, or those of all."""

import argparse
from pathlib import Path

import torch

from utils.experiment import Experiment
from utils.files import hash_json, relative
from utils.journal import refuse_difference
from utils.layout import adapters_folder, folder_name
from utils.lora.bank import Adapter
from utils.lora.merges import weighted
from utils.recipe import SERVER_RANKS
from utils.running import InputError, one_line
from utils.store.folders import is_stored, read_training, save_adapter, weights_hash
from utils.store.merging import open_merger


class Exporter:
    """Writes the merged adapters of an experiment, whose passages all have one from `base`.
    `options` are the flags of `adapters.py export`."""

    def __init__(self, experiment: Experiment, base: str | None, options: argparse.Namespace):
        self.experiment, self.base, self.options = experiment, base, options
        bank = experiment.bank()
        self.mergers = {
            name: open_merger(experiment, bank, name, base) for name in experiment.records
        }

    def names(self) -> dict[str, tuple[str, int]]:
        """`{data_type}_{did}` -> data type and did of each question, or passage of a corpus, that
        has adapters: the name of its folder, and for a server. Raises `InputError` without any."""
        names = {
            f"{folder_name(data_type)}_{did}": (data_type, did)
            for data_type, records in self.experiment.records.items()
            for did, record in enumerate(records)
            if record["augment"]
        }
        if not names:
            raise InputError("no question has a passage with an adapter; run augment.py again")
        return names

    def largest_rank(self) -> int:
        """The largest rank of all exported adapters."""
        records = self.experiment.records
        most = max(self.names().values(), key=lambda one: len(records[one[0]][one[1]]["augment"]))
        return padded_rank(self._merged(*most)[1], self.options.pad_rank)

    def _merged(self, data_type: str, did: int) -> tuple[Adapter, int]:
        """The merged adapter of a question, and its rank."""
        merged = self.mergers[data_type].merged(did)
        return merged, len(next(iter(merged.values()))[0])

    def export(self, data_type: str, did: int, folder: Path) -> str:
        """Write the adapter of a question into `folder`, whole or not at all; what it is, in words.

        The same one may be there already. Raises `InputError` if another one is, or if the merged
        adapter is too large or not finite.
        """
        recipe, options = self.experiment.recipe, self.options
        record = self.experiment.records[data_type][did]
        merged, rank = self._merged(data_type, did)
        padded = padded_rank(rank, options.pad_rank)
        alpha = exported_alpha(recipe.lora_alpha, recipe.lora_rank, padded)
        passages = self.mergers[data_type].passages[did]
        made_with = {
            **self.experiment.settings,
            **recipe.settings("merging"),
            "base": self.base,
            "question": record["question"],
            "adapter": relative(adapters_folder(recipe, data_type) / f"data_{did}"),
            "weights": hash_json([weights_hash(of) for of, _ in passages]),
            "merged_rank": rank,
            "exported_rank": padded,
            "save_dtype": options.save_dtype,
        }
        if is_stored(folder):
            remedy = "remove it, or give another --output"
            what = f"the adapter {relative(folder)}"
            refuse_difference(what, read_training(folder), made_with, remedy)
        else:
            dtype, base_model = getattr(torch, options.save_dtype), self.experiment.base_model
            zeros = self.mergers[data_type].bank.no_adapter(padded - rank)
            adapter = weighted([merged, zeros], [1.0, 1.0])
            save_adapter(adapter, folder, alpha, base_model, made_with, dtype, replace=False)
        title = one_line(record["question"] or record["title"] or record["id"])
        return f'"{title}": rank {rank}, filled up to {padded}, lora_alpha {alpha:g}'


def padded_rank(rank: int, wanted: int | None) -> int:
    """The rank to fill up to. Raises `InputError` if the merged one is larger."""
    if wanted == 0:
        return rank
    ranks = SERVER_RANKS if wanted is None else (wanted,)
    if rank > ranks[-1]:
        remedy = "give a larger --pad_rank, 0 for no filling up, or a smaller --merge_topk"
        raise InputError(f"the merged adapter has rank {rank}, above {ranks[-1]}; {remedy}")
    return next(one for one in ranks if one >= rank)


def exported_alpha(alpha: float, rank: int, exported_rank: int) -> float:
    """The lora_alpha with which an adapter of `exported_rank` counts as `alpha` does at `rank`.
    Loaders divide it by r: exact for powers of two, else to one unit in the last place."""
    exported = alpha / rank * exported_rank
    return int(exported) if exported.is_integer() else exported
