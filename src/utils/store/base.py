"""The adapter that all passages start from: `base_weight`, or what `--init_adapter` names."""

import json
from pathlib import Path

from utils.files import relative
from utils.lora.bank import Adapter, LoraBank
from utils.running import InputError
from utils.store.folders import (
    CONFIG_FILE,
    check_config,
    is_stored,
    load_adapter,
    read_training,
    save_adapter,
)


def open_base_adapter(bank: LoraBank, folder: Path, base_model: str, seed: int) -> Adapter:
    """The base adapter in `folder`, made there if it does not exist; several processes may call it.
    Raises `InputError` if the one that is there was made from another seed."""
    made_with = {"seed": seed, "initialisation": "A kaiming_uniform(a=sqrt(5)), B zeros"}
    if not is_stored(folder):
        adapter = bank.new_base_adapter(seed)
        save_adapter(adapter, folder, bank.alpha, base_model, made_with, replace=False)
    present = read_training(folder)
    if present != made_with:
        raise InputError(
            f"{relative(folder)} was made with {json.dumps(present)}, but this run asks for "
            f"{json.dumps(made_with)}; use --seed {present.get('seed')}, or move the folder "
            f"{relative(folder.parent)} away to start again"
        )
    return load_adapter(folder, bank.shapes(bank.rank))


def check_init_adapter(folder: Path, rank: int, alpha: float) -> None:
    """Raise `InputError` unless passages can start from the adapter in `folder`."""
    remedy = "train one with: python src/warmup_lora.py, or give another --init_adapter"
    if not (folder / CONFIG_FILE).is_file() or not is_stored(folder):
        raise InputError(f"--init_adapter: there is no adapter in {relative(folder)}; {remedy}")
    check_config(folder, rank, alpha, "--init_adapter: ", remedy)
