"""The results under `output/` as a table and a plot.

    python src/report.py

Prints exact match and F1 of every method, overall and by question type where the data set has
types, and writes `output/report/table.md` and `output/report/f1_by_method.png`.
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

from root_dir_path import ROOT_DIR
from utils.arguments import new_parser
from utils.paths import (
    InputError,
    augmented_file,
    read_json,
    relative,
    run_stage,
    write_text,
    writing_file,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS = ["closed_book", "icl", "prag", "combine"]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return new_parser(__doc__).parse_args(arguments)


def read_predictions(output: Path) -> pd.DataFrame:
    """One row per answered question: experiment, data type, method, question type, em, f1.

    Raises `InputError` where no result stands under `output`.
    """
    rows = []
    for path in sorted(output.glob("*/rank=*/*/*/*/*/*/predict.json")):
        *experiment, method, data_type, _ = path.relative_to(output).parts
        types = question_types(experiment[2], data_type)
        for prediction in read_json(path, "the predictions"):
            rows.append(
                {
                    "experiment": "/".join(experiment),
                    "data type": data_type,
                    "method": method,
                    "question type": types.get(prediction["question"]),
                    "em": prediction["em"],
                    "f1": prediction["f1"],
                }
            )
    if not rows:
        raise InputError(
            f"there is no result under {relative(output)}; run augment.py, encode.py and "
            "inference.py first (bash configs/demo.sh shows how)"
        )
    return pd.DataFrame(rows)


def question_types(dataset: str, data_type: str) -> dict[str, str]:
    """The type of each question, as far as the augmented file knows them."""
    path = augmented_file(dataset, data_type)
    records = read_json(path, "the augmented file") if path.is_file() else []
    return {r["question"]: r["type"] for r in records if isinstance(r.get("type"), str)}


def table_of(predictions: pd.DataFrame) -> pd.DataFrame:
    """Methods against EM, F1, number of questions, and the F1 of each question type."""
    groups = predictions.groupby("method")
    table = groups[["em", "f1"]].mean().rename(columns={"em": "EM", "f1": "F1"})
    table["questions"] = groups.size()
    if predictions["question type"].nunique() > 1:
        by_type = predictions.pivot_table("f1", "method", "question type")
        table = table.join(by_type.add_prefix("F1 "))
    return table.reindex([m for m in METHODS if m in table.index])


def as_markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, with three decimals."""
    cells = [["method", *table.columns]]
    for method, row in table.iterrows():
        values = [f"{v:.0f}" if n == "questions" else f"{v:.3f}" for n, v in row.items()]
        cells.append([method, *values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def plot(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """A bar for the F1 of each method, one panel per experiment and data type."""
    figure, axes = plt.subplots(
        1, len(tables), figsize=(1.2 + 3.8 * len(tables), 3.2), squeeze=False, sharey=True
    )
    for axis, (title, table) in zip(axes[0], tables.items(), strict=True):
        bars = axis.bar(
            table.index,
            table["F1"],
            color=["#9aa5b1", "#4c78a8", "#e4763f", "#8a5ba8"][: len(table)],
        )
        axis.bar_label(bars, fmt="%.2f", padding=2)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 1.08)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("F1")
    figure.tight_layout()
    with writing_file(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png")
    plt.close(figure)


def main() -> None:
    """Read, print, write."""
    parse_arguments()
    predictions = read_predictions(ROOT_DIR / "output")
    tables, lines = {}, []
    for (experiment, data_type), rows in predictions.groupby(["experiment", "data type"]):
        table = table_of(rows)
        model, _, dataset, training, _ = experiment.split("/")
        tables[f"{dataset} {data_type}\n{model}, {training}"] = table
        lines += [f"{dataset}, {data_type} ({experiment})", "", as_markdown(table), ""]
    text = "\n".join(lines)
    print(text)
    report = ROOT_DIR / "output" / "report"
    write_text(report / "table.md", text)
    plot(tables, report / "f1_by_method.png")
    print(f"table: {relative(report / 'table.md')}\nplot:  {relative(report / 'f1_by_method.png')}")


if __name__ == "__main__":
    run_stage(main)
