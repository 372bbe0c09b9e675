"""The report's texts, made of the frame of `comparing.figures_of`."""

import html
import re

import numpy as np
import pandas as pd

from utils.files import relative
from utils.reporting.comparing import REFERENCES
from utils.reporting.published import published
from utils.reporting.statistics import LEVEL
from utils.running import one_line

BLOCK = ["title", "differs"]
FIRST = ["dataset", "data_type", "question_type", "model", "group", "settings", "method"]  # in csv
MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "|`*~\\"}
FORMULAS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # some spreadsheets take the wide ones too
CAPTION = """\
Mean F1 with its 95% percentile bootstrap interval over the questions ({samples} resamples, seed \
{seed}); n is the number of questions. † differs from `icl`, ‡ from `prag`, of the same table and \
adapter settings: p < 0.05 in a two-sided paired randomisation test on F1 ({samples} random sign \
flips), not corrected for the number of tests. As `icl` uses no adapter, settings without one are \
tested against another setting's; a `prag` with adapters of another start, parts, objective or \
source is tested against the plain `prag` otherwise like it.

Results of a data set and model that differ in what every answer depends on are in several tables. \
`total` is a separate run on the first questions of the data set, not a mean over the types.

(paper …): {source}, on the first {questions} questions of each type; beside runs with the paper's \
rank, alpha, learning rate, merging and scoring. Seconds per question are those of answering in \
the run's own batches on its own machine, over the line's data types, without the training of \
adapters. Prompt tokens and retrievals of `flare` and `dragin` are those of all rounds.
"""

JUDGED = """
judge: the share of answers that a judge (`judge.json` beside each result) calls right, with its \
interval, and Cohen's κ of its verdicts with exact match and with answer presence; a verdict that \
says neither yes nor no is unread and counts as not right.
"""


def harmless(text: str, place: str = "terminal") -> str:
    """`text`, which may come from data, as one line that means nothing but itself in `place`. A
    place is "terminal", "markdown", "csv" (a cell) or "plot"."""
    line = " ".join(one_line(text).split())
    if place == "markdown":
        line = html.escape(line, quote=False).translate(MARKDOWN)
        # links and emphasis; not intervals such as "[0.1, 0.2]", not names such as "closed_book"
        line = re.sub(r"(?<=\])[(\[:]|(?<!\w)_|_(?!\w)|(?<=:)//|(?<=www)\.", _as_entities, line)
    if place == "csv" and line.startswith(FORMULAS):
        return "'" + line  # a spreadsheet would take it for a formula
    return line.replace("$", r"\$") if place == "plot" else line


def _as_entities(match: re.Match) -> str:
    return "".join(f"&#{ord(c)};" for c in match[0])


def interval_text(row: pd.Series) -> str:
    """F1 with its interval, and the marks of the references that it differs from."""
    marks = "".join(mark for name, mark in REFERENCES.items() if row[f"p_{name}"] < 1 - LEVEL)
    return f"{row['f1']:.3f} [{row['f1_low']:.3f}, {row['f1_high']:.3f}] {marks}".rstrip()


def judge_text(row: pd.Series) -> str:
    """The share that a judge calls right with its interval, and its agreement with EM and answer
    presence; "" if it was not asked."""
    if pd.isna(row.get("judge")):
        return ""
    kappas = [row["kappa_em"], row["kappa_answer_presence"]]
    kappas = ", ".join("-" if pd.isna(one) else f"{one:.2f}" for one in kappas)
    unread = f", {row['unread'] * row['n']:.0f} unread" if row["unread"] else ""
    interval = f"{row['judge']:.3f} [{row['judge_low']:.3f}, {row['judge_high']:.3f}]"
    return f"{interval} κ {kappas}{unread}"


def cost_texts(rows: pd.DataFrame) -> list[str]:
    """What a question cost on average over all questions of `rows`, as texts: seconds, tokens of
    its prompts, and of a method that counts them retrievals."""
    texts = []
    for name, form in {"seconds": ".3g", "prompt_tokens": ".0f", "retrievals": ".3g"}.items():
        known = rows[rows[f"{name}_per_question"].notna()]
        costs = known[f"{name}_per_question"]
        texts.append("" if known.empty else format(np.average(costs, weights=known["n"]), form))
    return texts


def aligned(lines: list[list[str]], start: str, between: str, end: str) -> list[str]:
    """A table of texts as lines with columns of one width; a column of empty cells is left out."""
    columns = [cells for cells in zip(*lines, strict=True) if any(cells[1:])]
    padded = [[cell.ljust(max(map(len, cells))) for cell in cells] for cells in columns]
    return [start + between.join(cells) + end for cells in zip(*padded, strict=True)]


def markdown_table(lines: list[list[str]]) -> list[str]:
    """A Markdown table whose first line is its head; a column of empty cells is left out."""
    head, *body = aligned(lines, "| ", " | ", " |")
    return [head, "".join(c if c == "|" else "-" for c in head), *body]


def markdown_report(figures: pd.DataFrame, left_out: list[str], samples: int, seed: int) -> str:
    """The text of table.md: a table for each group, a line for each setting and method."""
    caption = CAPTION + (JUDGED if "judge" in figures else "")
    text = ["# Results", "", caption.format(samples=samples, seed=seed, **published()).rstrip()]
    for (title, differs), rows in figures.groupby(BLOCK, sort=False):
        text += ["", f"## {harmless(title, 'markdown')}", ""]
        text += [harmless(differs, "markdown"), ""] if differs else []
        text += _group_table(rows)
    text += ["", "Not counted:", ""] if left_out else []
    text += ["- " + harmless(sentence, "markdown") for sentence in left_out]
    return "\n".join(text) + "\n"


def _group_table(figures: pd.DataFrame) -> list[str]:
    """The table of one group, with a column for each data type and question type."""
    columns = figures.drop_duplicates("column").sort_values("column")
    labels = columns["label"] + " (n = " + columns["n"].astype(str) + ")"
    judged = "judge: " + columns["label"]
    costs = ["seconds per question", "prompt tokens per question", "retrievals per question"]
    lines = [["settings", "method", *labels, *judged, *costs]]
    for (settings, method), rows in figures.groupby(["settings", "method"], sort=False):
        cells, verdicts = (dict.fromkeys(columns["column"], "") for _ in range(2))
        for _, row in rows.iterrows():
            paper = "" if pd.isna(row["published_f1"]) else f" (paper {row['published_f1']:.3f})"
            cells[row["column"]] = interval_text(row) + paper
            verdicts[row["column"]] = judge_text(row)
        costs = cost_texts(rows)
        lines.append([settings, method, *cells.values(), *verdicts.values(), *costs])
    return markdown_table([[harmless(cell, "markdown") for cell in line] for line in lines])


def terminal_table(figures: pd.DataFrame) -> str:
    """The tables for a terminal, with the data types below each other."""
    text = []
    for (title, differs, settings), rows in figures.groupby([*BLOCK, "settings"], sort=False):
        text += ["", harmless(f"{title}, {settings}".removesuffix(", "))]
        text += [harmless(differs)] if differs else []
        head = "method,F1 and 95% interval,n,judge,paper,s/question,tokens,retrievals"
        lines = [["", *head.split(",")]]
        rows = rows.sort_values("column", kind="stable")
        for number, (_, row) in enumerate(rows.iterrows()):
            paper = "" if pd.isna(row["published_f1"]) else f"{row['published_f1']:.3f}"
            cells = [row["label"], row["method"], interval_text(row), str(row["n"])]
            cells += [judge_text(row), paper, *cost_texts(rows.iloc[[number]])]
            lines.append([harmless(cell) for cell in cells])
        text += [line.rstrip() for line in aligned(lines, "  ", "  ", "")]
    return "\n".join(text)


def csv_table(figures: pd.DataFrame) -> str:
    """The text of table.csv: every figure of every run, a line for each question type."""
    table = figures.drop(columns=["run", "label", "column", *BLOCK])
    table["folder"] = [relative(run.folder) for run in figures["run"]]
    table = table.map(lambda cell: harmless(cell, "csv") if isinstance(cell, str) else cell)
    return table.set_index(FIRST).to_csv(float_format="%.6g")
