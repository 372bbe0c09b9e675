"""The results under `output/` as tables and plots.

    python src/report.py
    python src/report.py --dataset demo --model_name data/demo/demo-model

Writes into `output/report/`: `table.md` (methods against data types, as in the paper's table 1:
mean F1 with its 95% interval, marks of a paired test against `icl` and `prag`, the paper's figure,
seconds and tokens), `table.csv` (every metric, interval and p-value, one line per run and question
type), `f1_by_method` and `f1_against_seconds` (each as .png and .pdf). Prints a short table.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pandas as pd

from utils import layout
from utils.arguments import new_parser, positive_integer, seed_number
from utils.files import hash_json, relative, write_text
from utils.layout import folder_name
from utils.reporting.plots import plot_f1_against_seconds, plot_f1_by_method
from utils.reporting.runs import (
    MEASURED,
    PLAIN_MERGE,
    Run,
    column_place,
    published_f1,
    published_seconds,
    published_settings,
    read_runs,
    setting_labels,
)
from utils.reporting.statistics import LEVEL, SAMPLES, bootstrap_interval, paired_test
from utils.running import InputError, run_stage

REFERENCES = {"icl": "†", "prag": "‡"}  # every other method is tested against these
OTHER_QUESTIONS = "§"
OTHER_CONDITIONS = "¶"
ROW = ["model", "settings", "method"]
INTERNAL = ["run", "scores", "questions", "label", "column"]
# what answers from passages in the context depend on: nothing that makes adapters
CONTEXT_SETTINGS = ("model", "dtype", "prompts", "with_cot", "max_new_tokens")
ADAPTER_SETTINGS = (
    *("augment_model", "lora_rank", "lora_alpha", "learning_rate", "num_train_epochs"),
    *("per_device_train_batch_size", "max_length", "seed"),
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    choice = parser.add_argument_group("what to show")
    choice.add_argument("--dataset", help="this data set only (not set: all)")
    choice.add_argument("--model_name", help="this model only (not set: all)")
    statistics = parser.add_argument_group("statistics")
    statistics.add_argument(
        "--bootstrap_samples",
        type=positive_integer,
        default=SAMPLES,
        help="resamples of the questions for an interval, and random sign flips for a test",
    )
    statistics.add_argument("--seed", type=seed_number, default=0, help="seed of both, 0 or more")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------------------------
# Figures


def figures_of(runs: list[Run], samples: int, seed: int) -> pd.DataFrame:
    """One row for each run, and one for each question type of a run that knows them.

    Means of all metrics, the interval of F1 (`f1_low`, `f1_high`), the p-values of `paired_test`
    on F1 (`p_icl`, `p_prag`; missing without a counterpart on the same questions), the paper's
    figures, `column`: the number of its data type and question type in the order of a table,
    `same_questions`: whether the row has the questions of most rows of its column, `column_n`, and
    `same_conditions`: whether it can be compared with the `icl` and `prag` of its setting.
    """
    labels = setting_labels(runs)
    frame = pd.DataFrame([row for run in runs for row in _rows_of(run, labels)])
    frame["label"] = [column_label(row) for _, row in frame.iterrows()]
    places = [
        (column_place(row["dataset"], row["data_type"]), row["question_type"])
        for _, row in frame.iterrows()
    ]
    frame["column"] = [sorted(set(places)).index(place) for place in places]
    columns = frame.groupby("column")
    frame["same_questions"] = columns["questions"].transform(lambda asked: asked == _usual(asked))
    frame["column_n"] = columns["questions"].transform(lambda asked: _usual(asked)[0])
    intervals = [bootstrap_interval(scores["f1"], samples, seed) for scores in frame["scores"]]
    frame[["f1_low", "f1_high"]] = intervals
    for method in REFERENCES:
        frame[f"p_{method}"] = float("nan")
    frame["same_conditions"] = True
    for _, group in frame.groupby(["column", "model", "questions"]):
        f1_of = {run.folder: s["f1"] for run, s in zip(group["run"], group["scores"], strict=True)}
        for method, (index, run) in product(REFERENCES, group["run"].items()):
            if other := _reference(run, method, list(group["run"])):
                p = paired_test(f1_of[run.folder], f1_of[other.folder], samples, seed)
                frame.loc[index, f"p_{method}"] = p
        for index, run in group["run"].items():
            frame.loc[index, "same_conditions"] = not _conflicts(run, list(group["run"]))
    return frame


def _rows_of(run: Run, labels: dict) -> Iterator[dict]:
    """The row of all questions of `run`, then one of each question type."""
    types = sorted(run.scores["type"].dropna().unique())
    for question_type in ["", *types]:
        scores = run.scores
        if question_type:
            scores = scores[scores["type"] == question_type]
        row = {
            "dataset": run.dataset,
            "data_type": run.data_type,
            "question_type": question_type,
            "model": run.model,
            "settings": labels[run.model, run.dataset, run.setting],
            "method": run.method,
            "n": len(scores),
            **scores.drop(columns=["identity", "type"]).mean().to_dict(),
            "published_f1": None if question_type else published_f1(run),
            "run": run,
            "scores": scores,
            "questions": (len(scores), hash_json(scores["identity"].tolist())),
        }
        measured = run.config.get("measured", {})
        if not question_type and measured.get("questions"):
            row |= {f"measured_{name}": measured[name] for name in MEASURED}
        yield row


def _usual(asked: pd.Series) -> tuple[int, str]:
    """The commonest set of questions of a column, the largest of those that are equally common."""
    counts = asked.value_counts()
    return max(counts.index, key=lambda questions: (counts[questions], questions))


def _same_conditions(run: Run, other: Run) -> bool:
    """Whether the two answered with the same model, prompts and passages.

    The hash of the data covers the passages and what one augmentation model wrote about them, so
    it says nothing about those of another one; `closed_book` uses none.
    """
    comparable = (
        "closed_book" in (run.base_method, other.base_method)
        or not run.agrees(other, ("augment_model",))
        or run.agrees(other, ("data",))
    )
    return comparable and run.agrees(other, CONTEXT_SETTINGS)


def _conflicts(run: Run, runs: list[Run]) -> bool:
    """Whether `run` cannot be compared with a reference of its own setting."""
    return any(
        other.base_method in REFERENCES
        and other.has(PLAIN_MERGE)
        and (other.setting, other.cut) == (run.setting, run.cut)
        and not _same_conditions(run, other)
        for other in runs
    )


def _reference(run: Run, method: str, runs: list[Run]) -> Run | None:
    """The run of `method` among `runs` (same model, same questions) that `run` is tested against.

    It answered under the same conditions and is the plain one with the same settings. Where those
    have no `icl`, another setting's will do. A `prag` with adapters of another start or of fewer
    parts of the augmentation is tested against the `prag` that is otherwise like it.
    """
    candidates = [
        other
        for other in runs
        if other.base_method == method
        and other.has(PLAIN_MERGE)
        and other.cut == run.cut
        and _same_conditions(run, other)
    ]
    own = [other for other in candidates if other.setting == run.setting]
    if own and own[0] is not run:
        return own[0]
    if method == "icl":
        return candidates[0] if candidates and not own else None
    if run.has_plain_adapters or not own:
        return None
    plain = [o for o in candidates if o.has_plain_adapters and o.agrees(run, ADAPTER_SETTINGS)]
    return plain[0] if plain else None


# ------------------------------------------------------------------------------------------------
# Tables


def marks_of(row: pd.Series) -> str:
    """The marks of a row: of the tests, and of what keeps it from being compared."""
    marks = [mark for method, mark in REFERENCES.items() if row[f"p_{method}"] < 1 - LEVEL]
    marks += [] if row["same_questions"] else [OTHER_QUESTIONS]
    return "".join(marks + ([] if row["same_conditions"] else [OTHER_CONDITIONS]))


def column_label(row: pd.Series) -> str:
    """The data type, and the question type where it is one of several."""
    return row["data_type"] + (f": {row['question_type']}" if row["question_type"] else "")


def interval_text(row: pd.Series) -> str:
    """F1 with its interval and marks."""
    interval = f"{row['f1']:.3f} [{row['f1_low']:.3f}, {row['f1_high']:.3f}]"
    return f"{interval} {marks_of(row)}".rstrip()


def cell_text(row: pd.Series, published_questions: int) -> str:
    """`interval_text`, the number of questions where it is not the column's, the paper's F1."""
    text = interval_text(row)
    if not row["same_questions"]:
        text += f" n = {row['n']}"
    if pd.notna(row["published_f1"]):
        other = "" if row["n"] == published_questions else f", n = {published_questions}"
        text += f" (paper {row['published_f1']:.3f}{other})"
    return text


def cost_texts(rows: pd.DataFrame) -> tuple[str, str]:
    """Seconds per question and prompt tokens per question over the runs in `rows`, as texts."""
    if "measured_questions" not in rows or not (questions := rows["measured_questions"].sum()):
        return "", ""
    seconds = rows["measured_seconds"].sum() / questions
    return f"{seconds:.3g}", f"{rows['measured_prompt_tokens'].sum() / questions:.0f}"


def markdown_table(figures: pd.DataFrame) -> str:
    """The table of one data set: a line for each model, setting and method, a column per type."""
    published_questions = published_settings()["questions"]
    columns = figures.drop_duplicates("column").sort_values("column")
    labels = columns["label"] + " (n = " + columns["column_n"].astype(str) + ")"
    lines = [[*ROW, *labels, "seconds per question", "tokens per prompt"]]
    for (model, settings, method), rows in figures.groupby(ROW, sort=False):
        cells = {row["column"]: cell_text(row, published_questions) for _, row in rows.iterrows()}
        texts = [cells.get(column, "") for column in columns["column"]]
        seconds, tokens = cost_texts(rows)
        paper = published_seconds(model, rows["dataset"].iloc[0], method)
        if seconds and paper:
            seconds += f" (paper {paper})"
        lines.append([model, settings, method, *texts, seconds, tokens])
    return "\n".join(aligned(without_empty_columns(lines), "| ", " | ", " |", rule=True))


def terminal_table(figures: pd.DataFrame) -> str:
    """The same for a terminal, where the data types stand below each other."""
    text = []
    for (dataset, model, settings), rows in figures.groupby(
        ["dataset", "model", "settings"], sort=False
    ):
        text.append(f"\n{dataset}, {model}" + (f", {settings}" if settings else ""))
        lines = [["", "method", "F1 and 95% interval", "n", "paper", "s/question", "tokens"]]
        for _, row in rows.sort_values("column", kind="stable").iterrows():
            paper = f"{row['published_f1']:.3f}" if pd.notna(row["published_f1"]) else ""
            costs = cost_texts(row.to_frame().T)
            text_of_row = [row["method"], interval_text(row), str(row["n"]), paper, *costs]
            lines.append([row["label"], *text_of_row])
        text += aligned(without_empty_columns(lines), "  ", "  ", "")
    return "\n".join(text)


def without_empty_columns(lines: list[list[str]]) -> list[list[str]]:
    """A table of texts without the columns that hold nothing below their title."""
    kept = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def aligned(
    lines: list[list[str]], start: str, between: str, end: str, rule: bool = False
) -> list[str]:
    """A table of texts, as lines with columns of one width; `rule` adds Markdown's second line."""
    if rule:
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = [
        (start + between.join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + end).rstrip()
        for line in lines
    ]
    if rule:
        texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return texts


def caption(figures: pd.DataFrame, samples: int, seed: int) -> str:
    """What the cells of the table mean, and what in them must not be compared."""
    text = [
        f"Mean F1 with its 95% percentile bootstrap interval over the questions ({samples} "
        f"resamples, seed {seed}); n is the number of questions.",
        "† differs from `icl`, ‡ from `prag`, of the same model, settings and questions: p < 0.05 "
        f"in a two-sided paired randomisation test on F1 ({samples} random sign flips), not "
        "corrected for the number of tests. Where a setting has no `icl` of its own under the "
        "same conditions, it is another setting's, as `icl` uses no adapter; a `prag` with a warm "
        "start or with parts of the augmentation is tested against the `prag` without.",
    ]
    if not figures["same_questions"].all():
        text.append(
            "§ answered other questions than most of its column: not comparable with the others, "
            "and not tested against them."
        )
    if not figures["same_conditions"].all():
        text.append(
            "¶ differs from the `icl` or `prag` of its setting in the passages, what was written "
            "about them, the prompts, the model, its dtype or the length of answers: not "
            "comparable with it, and not tested against it. Their `config.json` say in what; "
            "answer both with the same (`inference.py --overwrite`)."
        )
    if (figures["data_type"] == "total").any() and figures["data_type"].nunique() > 1:
        text.append(
            "`total` is a run of its own on the first questions of the data set in its own order, "
            "not a mean over the types."
        )
    if figures["published_f1"].notna().any():
        paper = published_settings()
        text.append(
            f"(paper …): {paper['source']}, on the first {paper['questions']} questions of each "
            "type; beside runs with the paper's rank, alpha, learning rate, merging and scoring."
        )
    if "measured_seconds" in figures:
        text.append(
            "Seconds per question are those of answering in the run's own batches on its own "
            "machine, over the row's data types; training adapters is not in them. The paper's are "
            "one A100's."
        )
    return " ".join(text)


# ------------------------------------------------------------------------------------------------


def write_csv(figures: pd.DataFrame, path: Path) -> None:
    """Every figure of every run."""
    table = figures.drop(columns=INTERNAL)
    table["folder"] = [relative(run.folder) for run in figures["run"]]
    for name in ("seconds", "prompt_tokens", "generated_tokens"):
        if f"measured_{name}" in table:
            per_question = table[f"measured_{name}"] / table["measured_questions"]
            table[f"{name}_per_question"] = per_question
    table = table.drop(columns=[name for name in table if name.startswith("measured_")])
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def main() -> None:
    """Read, compare, write, print."""
    options = parse_arguments()

    # 1. Read
    output = layout.ROOT_DIR / "output"
    model = folder_name(options.model_name) if options.model_name else None
    dataset = folder_name(options.dataset) if options.dataset else None
    runs, left_out = read_runs(output, model, dataset)
    for sentence in left_out:
        print(f"warning: {sentence}", file=sys.stderr)
    if not runs:
        chosen = "".join(f" of {name}" for name in (model, dataset) if name)
        raise InputError(
            f"there is no result{chosen} under {relative(output)}; run augment.py, encode.py and "
            "inference.py first (bash configs/demo.sh shows how)"
            + (", or choose another --model_name or --dataset" if chosen else "")
        )

    # 2. Compare
    figures = figures_of(runs, options.bootstrap_samples, options.seed)

    # 3. Write
    report = output / "report"
    text = ["# Results", "", caption(figures, options.bootstrap_samples, options.seed)]
    for name, rows in figures.groupby("dataset", sort=False):
        text += ["", f"## {name}", "", markdown_table(rows)]
    if left_out:
        text += ["", "Not counted:", "", *[f"- {sentence}" for sentence in left_out]]
    write_text(report / "table.md", "\n".join(text) + "\n")
    write_csv(figures, report / "table.csv")
    plot_f1_by_method(figures, report / "f1_by_method.png")
    timed = plot_f1_against_seconds(figures, report / "f1_against_seconds.png")

    # 4. Print
    print(terminal_table(figures))
    print("\np < 0.05: † against icl, ‡ against prag; §: other questions than the rest")
    if not figures["same_conditions"].all():
        print("¶: other passages, prompts, model or answer length than its icl or prag")
    names = ["table.md", "table.csv", "f1_by_method.png"]
    names += ["f1_against_seconds.png"] if timed else []
    print(f"{', '.join(names)} in\n{relative(report)}")
    if not timed:
        print("no plot of F1 against seconds: these runs have not measured their time")


if __name__ == "__main__":
    run_stage(main)
