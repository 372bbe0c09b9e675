"""The demo's ablations of `encode.py --neighbours`: a table of what configs/demo_neighbours.sh ran.

    python benchmarks/effect_neighbours_table.py --root effect/neighbours --data_type dev

Reads `{root}/{name}/output/` of every name. Writes `neighbours_{data_type}.json` (F1 with its 95%
interval by question type, the settings, machine, versions) into `docs/demo_results/`, and prints
the table.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils.arguments import new_parser
from utils.files import relative, write_json
from utils.running import InputError, run_stage

RESULTS = Path(__file__).parents[1] / "docs/demo_results"
SETTINGS = ("learning_rate", "num_train_epochs", "schedule", "neighbours", "objective", "lora_rank")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the variants")
    parser.add_argument("--data_type", default="dev", help="split of the demo's questions")
    return parser.parse_args(arguments)


def main() -> None:
    """Read, describe, write."""
    options = parse_arguments()
    from effect_summary import cell, describe, questions_of
    from machine import machine

    from utils.provenance import provenance
    from utils.reporting.runs import read_runs

    types, rows = questions_of(options.data_type)["type"], []
    for folder in sorted(options.root.glob("*/output")):
        runs = read_runs(folder, dataset="demo")[0]
        for run in (run for run in runs if run.data_type == options.data_type):
            f1 = run.scores.set_index("identity")["f1"]
            kinds = {"all": f1, **dict(iter(f1.groupby(types.reindex(f1.index))))}
            scores = {kind: describe(own) for kind, own in kinds.items()}
            settings = {name: run.value(name) for name in SETTINGS}
            rows.append({"variant": folder.parent.name, "method": run.method, **settings, **scores})
    if not rows:
        raise InputError(f"{relative(options.root)} has no results; run configs/demo_neighbours.sh")
    result = {"data_type": options.data_type, "machine": machine(), **provenance(), "rows": rows}
    write_json(RESULTS / f"neighbours_{options.data_type}.json", result)
    for row in rows:
        cells = [cell(one) for one in row.values() if isinstance(one, dict)]
        print("| " + " | ".join([row["variant"], row["method"], *cells]) + " |")


if __name__ == "__main__":
    run_stage(main)
