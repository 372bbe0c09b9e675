"""The results under `output/` as tables and plots.

    python src/report.py
    python src/report.py --dataset demo --model_name data/demo/demo-model
    python src/report.py --reproduction
    python src/report.py --dataset demo --evidence

Writes into `output/report/`: `table.md` (methods against data types, as in the paper's table 1:
mean F1 with its 95% interval, marks of a paired test against `icl` and `prag`, the paper's figure,
seconds and tokens), `table.csv` (every metric, interval and p-value, one line per run and question
type), `f1_by_method` and `f1_against_seconds` (each as .png and .pdf). Results that were answered
with other settings, questions or passages are in tables of their own. Prints a short table.

With --reproduction it writes `reproduction.md` alone: the tables of docs/reproduction.md, with a
line for each of your runs of a published data set among those of the paper and of others.
With --evidence it prints and writes `evidence.md` alone: a page on what the score of `prag` is made
of, from the results that configs/evidence.sh makes (docs/evidence.md).
"""

import argparse
import sys

from utils.arguments import new_parser, positive_integer, seed_number
from utils.files import relative, write_text
from utils.running import InputError, run_stage


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--dataset", help="this data set only (not set: all)")
    add("--model_name", help="this model only (not set: all)")
    samples = "resamples of the questions for an interval, and random sign flips for a test"
    add("--bootstrap_samples", type=positive_integer, default=10_000, help=samples)
    add("--seed", type=seed_number, default=0, help="seed of both, 0 or more")
    matrix = (
        "what the paper, others and your runs report for each cell of the paper's tables, alone"
    )
    add("--reproduction", action="store_true", help=matrix)
    page = "knowledge, format, robustness and cost of prag with its controls, on one page"
    add("--evidence", action="store_true", help=page)
    return parser.parse_args(arguments)


def main() -> None:
    """Read, compare, write, print."""
    options = parse_arguments()
    from utils.reporting.comparing import figures_of
    from utils.reporting.evidence import evidence_pages
    from utils.reporting.plots import plot_f1_against_seconds, plot_f1_by_method
    from utils.reporting.reproduction import matrix
    from utils.reporting.runs import output_folder, read_runs
    from utils.reporting.tables import csv_table, harmless, markdown_report, terminal_table

    output, samples, seed = output_folder(), options.bootstrap_samples, options.seed
    runs, left_out = read_runs(output, options.model_name, options.dataset)
    for sentence in left_out:
        print(f"warning: {harmless(sentence)}", file=sys.stderr)
    folder = output / "report"
    if options.reproduction:
        write_text(folder / "reproduction.md", matrix(figures_of(runs, samples, seed)))
        print(f"the tables are in\n{relative(folder / 'reproduction.md')}")
        return
    if not runs:
        raise InputError(
            f"there is no result to show under {relative(output)}; run augment.py, encode.py and "
            "inference.py first (bash configs/demo.sh shows how), or choose others"
        )
    if options.evidence:
        if not (pages := evidence_pages(runs, samples, seed)):
            raise InputError("no prag has a control beside it; run configs/evidence.sh first")
        write_text(folder / "evidence.md", pages)
        print(pages, relative(folder / "evidence.md"), sep="\n")
        return
    figures = figures_of(runs, samples, seed)
    write_text(folder / "table.md", markdown_report(figures, left_out, samples, seed))
    write_text(folder / "table.csv", csv_table(figures))
    plot_f1_by_method(figures, folder / "f1_by_method.png")
    plot_f1_against_seconds(figures, folder / "f1_against_seconds.png")
    print(terminal_table(figures))
    print("\np < 0.05: † against icl, ‡ against prag")
    print(f"table.md, table.csv and the plots are in\n{relative(folder)}")


if __name__ == "__main__":
    run_stage(main)
