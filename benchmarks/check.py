r"""Has anything become slower or larger? Compares a result of `speed.py` with the committed one.

    OMP_NUM_THREADS=1 python benchmarks/speed.py --passages 48 --questions 32 --json speed.json
    python benchmarks/check.py speed.json             # `make bench-check` runs both
    python benchmarks/check.py speed.json --write     # this is the baseline from now on

Baselines are in `benchmarks/baselines/`, one for each kind of machine: what the processor can, and
how many threads, or the GPU's name. Compared are ratios of times that were taken in turn in one
run, which a busy machine changes little, and memory. Ends with code 1 and names what grew.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from utils.arguments import new_parser
from utils.files import read_object, relative, write_json
from utils.running import InputError, run_stage

BASELINES = Path(__file__).resolve().parent / "baselines"
FEATURES = ("amx_tile", "avx512f", "avx2")  # what decides how fast matrices are multiplied
TIME, MEMORY = 0.15, 0.05  # how much more is too much
# where in the result -> what it is; all are better when smaller
WATCHED = {
    "encode.ours.share_of_unpadded": ("encoding, beside one adapter at a time", TIME),
    "encode.ours.share_of_limit": ("encoding, beside the machine's matrix products", TIME),
    "encode.extra_cost_of_neighbours": ("a step with neighbours, beside one without", TIME),
    "answer.ours.share_of_published": ("a prag answer, beside the published way", TIME),
    "answer.extra_cost_of_prag": ("a prag answer, beside closed_book", TIME),
    "encode.ours.peak_bytes": ("memory of encoding", MEMORY),
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("result", type=Path, help="what `speed.py --json` wrote")
    parser.add_argument("--write", action="store_true", help="make it the machine's baseline")
    return parser.parse_args(arguments)


def kind(result: dict) -> str:
    """The kind of machine that a result of `speed.py` was taken on, as a file's name."""
    device, threads = result["provenance"]["device"], result["machine"]["threads"]
    if device != "cpu":
        return re.sub(r"\W+", "-", device.lower())
    best = next((one for one in FEATURES if one in result["machine"]["features"]), "other")
    return f"cpu-{best}-{threads}"


def ways_of(result: dict) -> dict[str, dict]:
    """All ways of a result of `speed.py` by name."""
    stages = ("encode", "answer")
    return {
        f"{stage}: {name}": way
        for stage in stages
        for name, way in result[stage].items()
        if isinstance(way, dict)
    }


def watched(result: dict) -> dict[str, float]:
    """The watched figures of a result of `speed.py`."""
    encode, answer = result["encode"], result["answer"]
    return {
        "encode.ours.share_of_unpadded": 1 / encode["ours"]["times_unpadded"],
        "encode.ours.share_of_limit": 1 / encode["ours"]["utilisation"],
        "encode.extra_cost_of_neighbours": 1 + encode["extra_cost_of_neighbours"],
        "answer.ours.share_of_published": 1 / answer["ours"]["times_published"],
        "answer.extra_cost_of_prag": 1 + answer["extra_cost_of_prag"],
        "encode.ours.peak_bytes": encode["ours"]["peak_bytes"],
    }


def grown(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """A sentence for each figure that is above the baseline by more than is allowed."""
    return [
        f"{what} grew by {now[name] / before[name] - 1:.1%} (allowed: {allowed:.0%}): "
        f"{before[name]:.4g} -> {now[name]:.4g} ({name})"
        for name, (what, allowed) in WATCHED.items()
        if now[name] > (1 + allowed) * before[name]
    ]


def main() -> None:
    """Compare, or keep."""
    options = parse_arguments()
    result = read_object(options.result, "the result of speed.py")
    if failed := [n for n, way in ways_of(result).items() if way.get("failure")]:
        words = f"{', '.join(failed)} failed; measure less at a time"
        raise InputError(f"{relative(options.result)}: {words}")
    now, baseline = watched(result), BASELINES / f"{kind(result)}.json"
    about = {name: result[name] for name in ("machine", "provenance", "arguments")}
    if options.write:
        write_json(baseline, {"figures": now, **about})
        print(f"{relative(baseline)} is the baseline now")
        return
    if not baseline.is_file():
        there = ", ".join(sorted(file.stem for file in BASELINES.glob("*.json"))) or "none"
        problem = f"no baseline of a machine of the kind {baseline.stem} (there are: {there})"
        raise InputError(f"{problem}; make one with --write, from a commit that you trust")
    before = read_object(baseline, "the baseline")["figures"]
    for name, (what, _) in WATCHED.items():
        print(f"{what:48} {before[name]:12.4g} -> {now[name]:12.4g}")
    if problems := grown(now, before):
        raise InputError("; ".join(problems))


if __name__ == "__main__":
    run_stage(main)
