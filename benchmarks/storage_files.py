"""The parts of `storage.py` about files: the size of adapters on the disk, and their loading."""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from random_work import skeleton_of

from utils.layout import passage_folder
from utils.lora.bank import Adapter, LoraBank
from utils.recipe import SAVE_DTYPES
from utils.store.folders import WEIGHTS_FILE, load_adapter, save_adapter

RANK, ALPHA = 2, 32
MODELS = ("llama3.2-1b", "qwen2.5-1.5b", "llama3-8b")


def random_adapter(bank: LoraBank, seed: int) -> Adapter:
    """An adapter of the bank's shapes, no number of which is zero."""
    torch.manual_seed(seed)
    return {
        name: (torch.randn(shape_a), torch.randn(shape_b))
        for name, (shape_a, shape_b) in bank.shapes(RANK).items()
    }


def bank_of(name: str) -> LoraBank:
    """The bank of a well-known architecture, without weights."""
    return LoraBank(skeleton_of(name), RANK, ALPHA)


def bytes_under(folder: Path) -> int:
    """The bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def save_random(bank: LoraBank, count: int, adapters: Path, dtype: torch.dtype) -> list[Path]:
    """Write `count` random adapters as a data type's folders."""
    folders = [passage_folder(adapters, did, 0) for did in range(count)]
    for did, folder in enumerate(folders):
        training = {"data": str(did), "base": "0" * 16}
        save_adapter(random_adapter(bank, did), folder, ALPHA, "random", training, dtype)
    return folders


def sizes(options: argparse.Namespace) -> list[dict]:
    """MB per passage: from the shapes, and as a folder."""
    rows = []
    for name in MODELS:
        bank = bank_of(name)
        shapes = bank.shapes(RANK).values()
        numbers = sum(a[0] * a[1] + b[0] * b[1] for a, b in shapes)
        for dtype_name in SAVE_DTYPES:
            dtype = getattr(torch, dtype_name)
            with tempfile.TemporaryDirectory() as place:
                adapters = Path(place) / "random"
                folders = save_random(bank, 4, adapters, dtype)
                unpacked = bytes_under(adapters) / 4
                weights = (folders[0] / WEIGHTS_FILE).stat().st_size
            rows.append(
                {
                    "model": name,
                    "dtype": dtype_name,
                    "parameters": numbers,
                    "bytes_of_the_numbers": numbers * dtype.itemsize,
                    "bytes_of_the_weights_file": weights,
                    "bytes_unpacked": unpacked,
                }
            )
            print(f"{name} {dtype_name}: {unpacked / 1e6:.3f} MB")
    return rows


def loading(options: argparse.Namespace) -> list[dict]:
    """Milliseconds to load an adapter from its folder, checks included."""
    rows = []
    bank = bank_of(MODELS[0])
    shapes = bank.shapes(RANK)
    for dtype_name in ("float32", "bfloat16"):
        times: dict[str, list[float]] = {"disk": [], "memory": []}
        with tempfile.TemporaryDirectory(dir=options.root.parent) as place:
            adapters = Path(place)
            save_random(bank, options.passages, adapters, getattr(torch, dtype_name))
            for round_number in range(options.repetitions + 1):
                for cache, own in times.items():
                    if cache == "disk":
                        forget(adapters)
                    spent = seconds_to_load(adapters, options.passages, shapes)
                    if round_number:
                        own.append(1e3 * spent / options.passages)
        for cache, own in times.items():
            rows.append({"model": MODELS[0], "dtype": dtype_name, "from": cache})
            rows[-1] |= {"milliseconds": statistics.median(own), "rounds": own}
            print({key: rows[-1][key] for key in ("dtype", "from", "milliseconds")})
    return rows


def seconds_to_load(adapters: Path, passages: int, shapes: dict) -> float:
    """How long it takes to load every adapter as inference.py does."""
    start = time.perf_counter()
    for did in range(passages):
        load_adapter(passage_folder(adapters, did, 0), shapes)
    return time.perf_counter() - start


def forget(folder: Path) -> None:
    """Take the files below `folder` out of the memory that the system keeps them in."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
