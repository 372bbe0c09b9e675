"""Measure encoding by one and by two processes, and what a whole Wikipedia would cost.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json       # after `make demo`
    python benchmarks/scaling.py --processes 1 2 4 8 --threads 1 --model_name llama3.2-1b-instruct \
        --prompts default --dataset popqa --data_type total --sample 300      # on eight GPUs

Runs the real `encode.py`, by the launcher if there is more than one process, each time into a new
folder, the ways in turn. Seconds are those of the whole command, start included. Then the cost
model: passages of DPR's Wikipedia (21,015,324) times what one takes on the disk, as
`storage.py sizes` measured it, and times its arithmetic. The hours on a GPU are computed, not
measured: 4 operations per parameter and token, at `--utilisation` of `--peak_tflops`.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from utils.arguments import new_parser, positive_integer, positive_number
from utils.files import read_json, write_json
from utils.running import InputError, run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
WIKIPEDIA = 21_015_324  # passages of 100 words (arXiv:2004.04906)
STORAGE = REPOSITORY / "benchmarks/results/storage_sizes.json"
MODELS = ("llama3.2-1b", "qwen2.5-1.5b", "llama3-8b")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument_group("work, as for encode.py").add_argument
    add("--model_name", default="data/demo/demo-model", help="model")
    add("--prompts", default="demo", help="prompt set")
    add("--dataset", default="demo", help="augmented data set")
    add("--data_type", default="test", help="its data type")
    add("--sample", type=int, default=-1, help="its first N questions (-1: all)")
    add("--num_train_epochs", type=positive_integer, default=1, help="epochs")
    add = parser.add_argument_group("ways").add_argument
    count = "numbers of processes"
    add("--processes", type=positive_integer, nargs="+", default=[1, 2], help=count)
    add("--threads", type=positive_integer, default=1, help="of each process")
    add("--repetitions", type=positive_integer, default=3, help="rounds")
    add = parser.add_argument_group("cost model").add_argument
    add("--utilisation", type=positive_number, default=0.35, help="share of the peak arithmetic")
    add("--peak_tflops", type=positive_number, default=989, help="of a GPU (H100, bfloat16)")
    parser.add_argument("--json", type=Path, help="file for the raw result (not set: none)")
    return parser.parse_args(arguments)


def encode_seconds(processes: int, source: Path, options: argparse.Namespace) -> tuple[float, int]:
    """Seconds of one `encode.py` into a fresh root, and the passages that it said it trained."""
    command = [sys.executable]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        command += [*launcher, "--nproc_per_node", str(processes)]
    command.append(str(REPOSITORY / "src/encode.py"))
    for name in ("model_name", "prompts", "dataset", "data_type", "sample", "num_train_epochs"):
        command += [f"--{name}", str(getattr(options, name))]
    with tempfile.TemporaryDirectory(prefix="scaling_") as root:
        shutil.copytree(source / "data_aug" / options.dataset, f"{root}/data_aug/{options.dataset}")
        start = time.perf_counter()
        done = subprocess.run(
            command,
            env=os.environ | {"PRAG_ROOT": root, "OMP_NUM_THREADS": str(options.threads)},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise InputError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        files = Path(root).glob("offline/**/passage_*/adapter_model.safetensors")
        return seconds, len({file.stat().st_ino for file in files})


def measure(options: argparse.Namespace) -> dict[int, dict]:
    """Each number of processes with its seconds, median and adapters per second."""
    source = Path(os.environ.get("PRAG_ROOT", REPOSITORY))
    if not (source / "data_aug" / options.dataset).is_dir():
        raise InputError(f"{source / 'data_aug' / options.dataset} is missing; run `make demo`")
    seconds: dict[int, list[float]] = {count: [] for count in options.processes}
    for number in range(options.repetitions):
        for count in options.processes:
            taken, trained = encode_seconds(count, source, options)
            seconds[count].append(taken)
            print(f"round {number + 1}: {count} processes {taken:.1f} s", flush=True)
    return {
        count: {
            "seconds": taken,
            "median": statistics.median(taken),
            "adapters": trained,
            "adapters_per_second": trained / statistics.median(taken),
        }
        for count, taken in seconds.items()
    }


def cost_model(options: argparse.Namespace) -> dict[str, dict]:
    """GPU-hours and terabytes for `WIKIPEDIA` passages of each model, one epoch in direct mode."""
    # torch takes seconds to import: not before the flags are known to be good
    from limit import products
    from random_work import random_prompts, skeleton_of

    costs = {}
    sizes = read_json(STORAGE, "the measured storage")["rows"]
    for name in MODELS:
        skeleton = skeleton_of(name)
        shapes = products(skeleton).items()
        parameters = sum(count * out * wide for (out, wide), count in shapes)
        passages, _ = random_prompts(skeleton.config, "direct", 200, 1)
        tokens = sum(len(prompt) for own in passages for prompt in own) / len(passages)
        operations = 4 * parameters * tokens
        seconds = operations / (options.utilisation * options.peak_tflops * 1e12)
        costs[name] = {
            "tokens_per_passage": tokens,
            "parameters_in_products": parameters,
            "passages_per_second": 1 / seconds,
            "gpu_hours": WIKIPEDIA * seconds / 3600,
            "terabytes": {
                row["dtype"]: WIKIPEDIA * row["bytes_unpacked"] / 1e12
                for row in sizes
                if row["model"] == name
            },
        }
    return costs


def main() -> None:
    """Measure, compute, show, save."""
    options = parse_arguments()
    from machine import machine

    from utils.provenance import provenance  # imports torch

    ways = measure(options)
    costs = cost_model(options)
    first = ways[options.processes[0]]["median"]
    print(f"\n{'processes':>10}{'seconds':>10}{'adapters':>10}{'per second':>12}{'times':>8}")
    for count, way in ways.items():
        print(
            f"{count:>10}{way['median']:>10.1f}{way['adapters']:>10}"
            f"{way['adapters_per_second']:>12.2f}{first / way['median']:>8.2f}"
        )
    print(f"\n{WIKIPEDIA:,} passages, computed for a GPU at {options.utilisation:.0%} of "
          f"{options.peak_tflops:g} TFLOP/s")  # fmt: skip
    print(f"{'model':>14}{'passages/s':>12}{'GPU-hours':>11}{'TB float32':>12}{'TB 16 bit':>11}")
    for name, cost in costs.items():
        print(
            f"{name:>14}{cost['passages_per_second']:>12.1f}{cost['gpu_hours']:>11.0f}"
            f"{cost['terabytes']['float32']:>12.1f}"
            f"{cost['terabytes']['bfloat16']:>11.1f}"
        )
    if options.json:
        write_json(
            options.json,
            {
                "arguments": vars(options) | {"json": None},
                "machine": machine(),
                "provenance": provenance(),
                "encode": {str(count): way for count, way in ways.items()},
                "cost_model": costs,
            },
        )


if __name__ == "__main__":
    run_stage(main)
