"""What adapters take on the disk, what a smaller dtype costs in F1, how fast they load.

    python benchmarks/storage.py sizes       # MB per passage of three models, random numbers
    python benchmarks/storage.py f1          # the demo's 432 test questions, for each --save_dtype
    python benchmarks/storage.py compute     # the same for float32 and bfloat16 as --dtype
    python benchmarks/storage.py loading     # an adapter from its folder and from a pack

`f1` and `compute` run the real scripts with the settings of configs/demo.sh below `--root`, and go
on where they were stopped. Each part writes `benchmarks/results/storage_{part}.json`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from machine import machine
from random_work import ARCHITECTURES

from utils.arguments import new_parser, positive_integer
from utils.files import write_json
from utils.flags import SAVE_DTYPES
from utils.layout import passage_folder
from utils.lora.bank import Adapter, LoraBank
from utils.provenance import provenance
from utils.reporting.statistics import bootstrap_interval, paired_test
from utils.store.adapter_packs import PACKED, WEIGHTS_FILE
from utils.store.folders import load_adapter, save_adapter
from utils.store.packing import pack

REPOSITORY = Path(__file__).resolve().parents[1]
RANK, ALPHA = 2, 32
MODELS = ("llama3.2-1b", "qwen2.5-1.5b", "llama3-8b")
MODEL = ["--model_name", "data/demo/demo-model", "--prompts", "demo"]
DATA = ["--dataset", "demo", "--data_type", "test"]
TRAIN = ["--learning_rate", "4e-3", "--num_train_epochs", "1"]
METHODS = ("closed_book", "icl", "prag", "combine")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("part", choices=PARTS, help="what to measure")
    parser.add_argument(
        "--root", type=Path, default=Path("/tmp/prag_storage"), help="folder of f1's runs"
    )
    parser.add_argument(
        "--passages", type=positive_integer, default=48, help="adapters that loading reads"
    )
    parser.add_argument(
        "--repetitions", type=positive_integer, default=5, help="counted rounds of loading"
    )
    return parser.parse_args(arguments)


def random_adapter(bank: LoraBank, seed: int) -> Adapter:
    """An adapter of the bank's shapes, no number of which is zero."""
    torch.manual_seed(seed)
    return {
        name: (torch.randn(shape_a), torch.randn(shape_b))
        for name, (shape_a, shape_b) in bank.shapes(RANK).items()
    }


def bank_of(name: str) -> LoraBank:
    """The bank of a well-known architecture, without weights."""
    with torch.device("meta"):
        return LoraBank(AutoModelForCausalLM.from_config(ARCHITECTURES[name]()), RANK, ALPHA)


def bytes_under(folder: Path) -> int:
    """The bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def save_random(bank: LoraBank, count: int, adapters: Path, dtype: torch.dtype) -> list[Path]:
    """Write `count` random adapters as a data type's folders."""
    folders = [passage_folder(adapters, did, 0) for did in range(count)]
    for did, folder in enumerate(folders):
        training = {"data": str(did), "base": "0" * 16}
        save_adapter(random_adapter(bank, did), folder, RANK, ALPHA, "random", training, dtype)
    return folders


def sizes(options: argparse.Namespace) -> list[dict]:
    """MB per passage: from the shapes, as a folder, and as a part of a pack of four."""
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
                pack(adapters)
                packed = bytes_under(adapters / PACKED) / 4
            rows.append(
                {
                    "model": name,
                    "dtype": dtype_name,
                    "parameters": numbers,
                    "bytes_of_the_numbers": numbers * dtype.itemsize,
                    "bytes_of_the_weights_file": weights,
                    "bytes_unpacked": unpacked,
                    "bytes_packed": packed,
                }
            )
            print(f"{name} {dtype_name}: {unpacked / 1e6:.3f} MB, packed {packed / 1e6:.3f} MB")
    return rows


def f1(options: argparse.Namespace) -> list[dict]:
    """F1 of prag and combine for each --save_dtype, with 95% intervals, and against float32."""
    return compare(options, "save_dtype", SAVE_DTYPES, ("prag", "combine"))


def compute(options: argparse.Namespace) -> list[dict]:
    """F1 of all methods with model and activations in float32 and in bfloat16, likewise."""
    return compare(options, "dtype", ("float32", "bfloat16"), METHODS)


def compare(
    options: argparse.Namespace, flag: str, dtypes: tuple[str, ...], methods: tuple[str, ...]
) -> list[dict]:
    """F1 of each method for each dtype given as `--{flag}`; the first dtype is compared with."""
    first = options.root
    run(first, "prep_elastic.py", "--data_path", "data/demo/corpus.tsv", "--index_name", "demo")
    run(
        first, "src/augment.py", *MODEL, *DATA, "--data_path", "data/demo/questions.json",
        "--index_name", "demo", "--topk", "3", "--max_new_tokens", "200", "--temperature", "0.3",
        "--batch_size", "64",
    )  # fmt: skip
    rows, scores = [], {}
    for dtype in dtypes:
        root = options.root / f"{flag}_{dtype}"
        computing = ["--dtype", dtype] if flag == "dtype" else []
        if not (root / "data_aug").exists():
            shutil.copytree(first / "data_aug", root / "data_aug")
        run(root, "src/encode.py", *MODEL, *DATA, *TRAIN, f"--{flag}", dtype)
        weights = list(root.rglob(f"passage_*/{WEIGHTS_FILE}"))
        for method in methods:
            answering = ["--inference_method", method, "--max_new_tokens", "12"]
            run(root, "src/inference.py", *MODEL, *DATA, *TRAIN, *answering, *computing)
            [file] = root.glob(f"output/**/{method}/test/predict.json")
            predictions = json.loads(file.read_text())
            own = [row["f1"] for row in predictions]
            texts = [row["text"] for row in predictions]
            scores[dtype, method] = own, texts
            exact, exact_texts = scores[dtypes[0], method]
            rows.append(
                {
                    "dtype": dtype,
                    "method": method,
                    "questions": len(own),
                    "f1": statistics.fmean(own),
                    "interval": bootstrap_interval(own),
                    "p_against_float32": paired_test(own, exact),
                    "equal_texts": sum(a == b for a, b in zip(texts, exact_texts, strict=True)),
                    "bytes_of_a_weights_file": weights[0].stat().st_size,
                }
            )
            print({key: rows[-1][key] for key in ("dtype", "method", "f1", "interval")})
    return rows


def run(root: Path, script: str, *flags: str) -> None:
    """One of the scripts with `root` as its PRAG_ROOT; ends this program where it fails."""
    if script == "prep_elastic.py" and (root / "index/demo").exists():
        return
    environment = os.environ | {"PRAG_ROOT": str(root)}
    command = [sys.executable, script, *flags]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)


def loading(options: argparse.Namespace) -> list[dict]:
    """Milliseconds to load an adapter, checks included, from its folder and from a pack."""
    rows = []
    name = MODELS[0]
    bank = bank_of(name)
    shapes = bank.shapes(RANK)
    for dtype_name in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory(dir=options.root.parent) as place:
            folders, packs = Path(place) / "folders", Path(place) / "packed"
            save_random(bank, options.passages, folders, getattr(torch, dtype_name))
            shutil.copytree(folders, packs)
            pack(packs)
            times: dict[tuple[str, str], list[float]] = {}
            for round_number in range(options.repetitions + 1):
                for cache in ("disk", "memory"):
                    for way, adapters in (("unpacked", folders), ("packed", packs)):
                        if cache == "disk":
                            forget(adapters)
                        spent = seconds_to_load(adapters, options.passages, shapes)
                        if round_number:
                            own = times.setdefault((way, cache), [])
                            own.append(1e3 * spent / options.passages)
        for (way, cache), own in times.items():
            rows.append({"model": name, "dtype": dtype_name, "way": way, "from": cache})
            rows[-1] |= {"milliseconds": statistics.median(own), "rounds": own}
            print({key: rows[-1][key] for key in ("dtype", "way", "from", "milliseconds")})
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


PARTS = {"sizes": sizes, "f1": f1, "compute": compute, "loading": loading}


def main() -> None:
    """Measure one part and write its result."""
    options = parse_arguments()
    options.root.mkdir(parents=True, exist_ok=True)
    rows = PARTS[options.part](options)
    result = {"machine": machine(), "provenance": provenance(), "rank": RANK, "rows": rows}
    write_json(REPOSITORY / "benchmarks/results" / f"storage_{options.part}.json", result)


if __name__ == "__main__":
    main()
