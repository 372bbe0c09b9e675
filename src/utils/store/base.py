"""The adapter that all passages start from: `base_weight`, or what `--init_adapter` names.

Adapters record its fingerprint, so what stands later can be compared with what they grew from.
"""

import argparse
from pathlib import Path

from utils.files import relative
from utils.flags import init_folder, shared_flags
from utils.layout import rank_folder
from utils.lora.bank import LoraBank
from utils.models import load_skeleton, resolve_model
from utils.running import InputError
from utils.store.folders import fingerprint, open_base_adapter, stored_fingerprint


def base_folder_of(options: argparse.Namespace) -> Path:
    """The folder of the base adapter."""
    rank = rank_folder(options.model_name, options.lora_rank, options.lora_alpha)
    return init_folder(options) or rank / "base_weight"


def skeleton_bank(options: argparse.Namespace) -> LoraBank:
    """The places for adapters in the model of `--model_name`, which needs none of its weights."""
    model = load_skeleton(options.model_name, options.trust_remote_code)
    return LoraBank(model, options.lora_rank, options.lora_alpha)


def refuse_other_base(trained_from: str | None, options: argparse.Namespace) -> None:
    """Refuse a base adapter that stands and is not the one that the passages were trained from.

    `trained_from` is the fingerprint in their records. Without a base adapter all is well: they
    hold what it gave them. Raises `InputError` where it is damaged or another one.
    """
    folder, start = base_folder_of(options), init_folder(options)
    encode = f"run: python src/encode.py {shared_flags(options)}"
    try:
        stands = stored_fingerprint(folder)
    except InputError as error:
        more = "or put the first one back" if start else f"then {encode}"
        raise InputError(f"the base adapter is damaged: {error}; {more}") from None
    if stands not in (None, trained_from):
        remedy = "put the first one back, or " if start else "delete that folder and "
        encode += " --overwrite" if start else ""
        raise InputError(
            f"the passages were trained from the base adapter {trained_from}, which was replaced: "
            f"{stands} stands in {relative(folder)}; {remedy}{encode}"
        )


def make_base_again(options: argparse.Namespace, trained_from: set[str]) -> str:
    """Write the missing `base_weight` that passages were trained from; its fingerprint.

    Its numbers follow from `--seed` and the layers' shapes, so no weights are loaded. It is not
    written where it would be another one than `trained_from`, which the caller refuses.
    """
    bank = skeleton_bank(options)
    made = fingerprint(bank.new_base_adapter(options.seed))
    if trained_from == {made}:
        name = resolve_model(options.model_name)
        open_base_adapter(bank, base_folder_of(options), name, options.seed)
    return made
