"""What an answer by `prag` costs beside one by `closed_book`, for all questions of a finished run.

    python benchmarks/price.py --json benchmarks/results/price_demo_cpu.json -- \\
        --model_name data/demo/demo-model --prompts demo --dataset demo --data_type test \\
        --learning_rate 4e-3 --max_new_tokens 12                                # after `make demo`

After `--` come flags of inference.py, which is run with `--overwrite` by both methods in turn, in
one process, after a round that is not counted. The stage is everything from the flags to the result
but Python's imports; the loop is what config.json calls "measured": reading and merging adapters,
answers, scores. Shown are medians, and the median of each round's ratio: by the clock, by processor
time (the work's own on a machine that others use) and per step of the model, as answers may be
longer.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from utils.arguments import new_parser, positive_integer
from utils.running import run_stage

METHODS = ("closed_book", "prag")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--repetitions", type=positive_integer, default=5, help="counted rounds")
    parser.add_argument("--json", type=Path, help="file for the raw result (not set: none)")
    parser.add_argument("flags", nargs="+", help="flags of inference.py, after --")
    return parser.parse_args(arguments)


def watch_loops() -> list[dict]:
    """A list to which each loop of `Answering` adds its seconds, CPU seconds and model's steps."""
    from clock import given_to

    from utils.answering import Answering

    loops, batches = [], Answering._batches

    def watched(self: Answering, *of: object) -> Iterator[dict]:
        start, cpu = time.perf_counter(), time.process_time()
        with given_to(self.model) as steps:
            yield from batches(self, *of)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        loops.append({"seconds": seconds, "cpu_seconds": cpu, "steps": len(steps)})

    Answering._batches = watched
    return loops


def run_once(method: str, flags: list[str], loops: list[dict]) -> dict:
    """One run of inference.py: its loop's figures, and the whole stage's."""
    import inference
    from utils.store import folders

    folders._read_record.cache_clear()  # as in a process of its own
    sys.argv = ["inference.py", *flags, "--inference_method", method, "--overwrite"]
    start, cpu = time.perf_counter(), time.process_time()
    inference.main()
    stage = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    loop = {name: sum(one[name] for one in loops) for name in loops[0]}  # of all data types
    loops.clear()
    return {"stage": stage, "loop": loop}


def ratios(rounds: dict[str, list[dict]]) -> dict[str, float]:
    """What `prag` costs as a multiple of `closed_book`, the medians over the rounds."""

    def median(of: Callable[[dict], float]) -> float:
        pairs = zip(*(rounds[method] for method in METHODS), strict=True)
        return statistics.median(of(prag) / of(closed) for closed, prag in pairs)

    found = {
        f"{part}_{what}": median(lambda one, part=part, what=what: one[part][what])
        for part in ("loop", "stage")
        for what in ("seconds", "cpu_seconds")
    }
    per_step = median(lambda one: one["loop"]["cpu_seconds"] / one["loop"]["steps"])
    return {**found, "loop_steps": median(lambda one: one["loop"]["steps"]), "per_step": per_step}


def main() -> None:
    """Run in turn, show, save."""
    options = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    import torch
    from machine import machine

    from utils.files import write_json
    from utils.provenance import provenance

    loops, rounds = watch_loops(), {method: [] for method in METHODS}
    command = provenance()
    for number in range(options.repetitions + 1):
        for method in METHODS:
            found = run_once(method, options.flags, loops)
            rounds[method] += [found] if number else []
    found = ratios(rounds)
    for method, own in rounds.items():
        for part in ("loop", "stage"):
            names = ("seconds", "cpu_seconds")
            shown = [statistics.median(one[part][name] for one in own) for name in names]
            print(f"{method} {part}: {shown[0]:.2f} s, {shown[1]:.2f} CPU s")
    print("prag over closed_book: " + ", ".join(f"{name} {x:.3f}" for name, x in found.items()))
    if options.json:
        about = {"machine": machine() | {"threads": torch.get_num_threads()}, "provenance": command}
        write_json(options.json, {"flags": options.flags, **about, "rounds": rounds, **found})


if __name__ == "__main__":
    run_stage(main)
