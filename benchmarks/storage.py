"""What adapters take on the disk, what a smaller dtype costs in F1, how fast they load.

    python benchmarks/storage.py sizes       # MB per passage of three models, random numbers
    python benchmarks/storage.py f1          # the demo's 432 test questions, for each --save_dtype
    python benchmarks/storage.py compute     # the same for float32 and bfloat16 as --dtype
    python benchmarks/storage.py loading     # an adapter from its folder

`f1` and `compute` run the real scripts with the settings of configs/demo.sh below `--root`, and go
on after a stop. Each part writes `benchmarks/results/storage_{part}.json`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from utils.arguments import new_parser, positive_integer
from utils.files import write_json
from utils.recipe import SAVE_DTYPES
from utils.running import run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("sizes", "f1", "compute", "loading")
MODEL = ["--model_name", "data/demo/demo-model", "--prompts", "demo"]
DATA = ["--dataset", "demo", "--data_type", "test"]
TRAIN = ["--learning_rate", "4e-3", "--num_train_epochs", "1"]
METHODS = ("closed_book", "icl", "prag", "combine")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add, root = parser.add_argument, Path("/tmp/prag_storage")
    add("part", choices=PARTS, help="what to measure")
    add("--root", type=Path, default=root, help="folder of f1's runs")
    add("--passages", type=positive_integer, default=48, help="adapters that loading reads")
    add("--repetitions", type=positive_integer, default=5, help="counted rounds of loading")
    return parser.parse_args(arguments)


def compare(
    options: argparse.Namespace, flag: str, dtypes: tuple[str, ...], methods: tuple[str, ...]
) -> list[dict]:
    """F1 of each method for each dtype given as `--{flag}`, with 95% intervals, and against the
    first dtype."""
    # numpy takes long to import: not before the flags are known to be good
    from utils.reporting.statistics import bootstrap_interval, paired_test

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
        weights = list(root.rglob("passage_*/adapter_model.safetensors"))
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
    """One of the scripts with `root` as its PRAG_ROOT; ends this program if it fails."""
    environment = os.environ | {"PRAG_ROOT": str(root)}
    command = [sys.executable, script, *flags]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)


def main() -> None:
    """Measure one part and write its result."""
    options = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from machine import machine
    from storage_files import RANK, loading, sizes

    from utils.provenance import provenance

    options.root.mkdir(parents=True, exist_ok=True)
    parts = {
        "sizes": sizes,
        "f1": partial(compare, flag="save_dtype", dtypes=SAVE_DTYPES, methods=METHODS[2:]),
        "compute": partial(compare, flag="dtype", dtypes=("float32", "bfloat16"), methods=METHODS),
        "loading": loading,
    }
    rows = parts[options.part](options)
    result = {"machine": machine(), "provenance": provenance(), "rank": RANK, "rows": rows}
    write_json(REPOSITORY / "benchmarks/results" / f"storage_{options.part}.json", result)


if __name__ == "__main__":
    run_stage(main)
