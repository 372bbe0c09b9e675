r"""The test results of `configs/real.sh` over all data sets: a table, and each question's scores.

    python benchmarks/real_table.py --out docs/real/questions.csv

Writes the F1 of each question and method (no texts: they are the data
sets'), and prints a table: mean F1 per data set, over all questions with its 95% interval, answer
presence, and the p-value of a paired randomisation test against `closed_book`.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from utils.arguments import new_parser
from utils.files import relative, write_text
from utils.running import InputError, run_stage

if TYPE_CHECKING:
    from utils.reporting.runs import Run

REAL = "real_"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file of each question's scores")
    return parser.parse_args(arguments)


def way_of(run: "Run") -> str:
    """Method and training of a result, as short as can be."""
    training = run.setting[1].replace("_parts=qa", "")
    return run.method if run.method in ("closed_book", "icl") else f"{run.method}, {training}"


def main() -> None:
    """Read, write, print."""
    options = parse_arguments()
    import pandas as pd

    from utils.reporting.runs import output_folder, read_runs
    from utils.reporting.statistics import bootstrap_interval, paired_test
    from utils.reporting.tables import markdown_table

    runs, _ = read_runs(output_folder())
    runs = [r for r in runs if r.dataset.startswith(REAL) and r.data_type == "test"]
    runs = [r for r in runs if r.method == r.base_method]  # no controls of the answer
    if not runs:
        raise InputError("there is no result of real questions; run configs/real.sh first")
    keyed = {}
    for run in runs:
        key = run.dataset.removeprefix(REAL), way_of(run)
        kept = keyed.setdefault(key, run.scores.set_index("identity"))
        if not kept.equals(run.scores.set_index("identity")):
            raise InputError(f"{relative(run.folder)} is a second result of {key}; move one away")
    scores = pd.concat(keyed, names=["dataset", "way", "question"])
    f1, present = (scores[name].unstack("way") for name in ("f1", "answer_presence"))
    write_text(options.out, f1.round(3).to_csv())
    base = "closed_book"
    names = sorted(f1.index.get_level_values("dataset").unique())
    lines = [["method and training", *names, "all", "n", "answer presence", "p, closed_book"]]
    for way in f1:
        own = f1[way].dropna()
        low, high = bootstrap_interval(own.to_numpy())
        p = paired_test(own.to_numpy(), f1.loc[own.index, base].to_numpy())
        each = [f"{own.get(name).mean():.3f}" if name in own else "" for name in names]
        cells = [f"{own.mean():.3f} [{low:.3f}, {high:.3f}]", str(len(own))]
        cells += [f"{present[way].mean():.3f}", "" if way == base else f"{p:.3f}"]
        lines.append([way, *each, *cells])
    print(*markdown_table(lines), sep="\n")
    print(f"each question's F1 is in {relative(options.out)}")


if __name__ == "__main__":
    run_stage(main)
