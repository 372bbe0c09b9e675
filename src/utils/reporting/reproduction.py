"""Every cell of the paper's tables with what others and your own runs report for it.

The figures are those of `published.json`, each under its source; docs/reproduction.md holds the
text that `matrix` makes of them.
"""

from collections.abc import Iterable, Iterator
from statistics import fmean

import pandas as pd

from utils.datasets import DATASETS, PAPER
from utils.reporting.published import published, short_name
from utils.reporting.tables import harmless, markdown_table

HEAD = ["model", "method", "by"]  # what every line begins with


def matrix(figures: pd.DataFrame) -> str:
    """The Markdown of all tables, with a line for each of the `figures` of published data sets."""
    reports = _reports()
    said = [f"{r['source']}; {r['setting']}".removesuffix(".") for r in reports]
    text = [f"- **{r['name']}** ({r['metric']}): {s}." for r, s in zip(reports, said, strict=True)]
    for dataset in DATASETS:
        lines = [*_lines(reports, _cells(dataset)), *_own_lines(figures, dataset)]
        if lines:
            head = [*HEAD, *(cell.split("/")[1] for cell in _cells(dataset))]
            text += ["", f"### {dataset}", "", *markdown_table([head, *_sorted(lines)])]
    head = [*HEAD, "mean of the 8 types", "with the 2 totals"]
    lines = _sorted(_averages(reports))
    return "\n".join([*text, "", "### Averages", "", *markdown_table([head, *lines])]) + "\n"


def _reports() -> list[dict]:
    """The paper's two tables as reports like the others, then these."""
    paper = {"metric": "F1", "source": published()["source"], "setting": published()["setting"]}
    warm = "as above, each passage from a trained start (docs/warmup.md)"
    return [
        paper | {"name": "paper", "values": published()["f1"]},
        paper | {"name": "paper, warm-up", "setting": warm, "values": published()["f1_warmup"]},
        *published()["reports"],
    ]


def _cells(dataset: str) -> list[str]:
    return [f"{dataset}/{kind}" for kind in (*DATASETS[dataset].types, "total")]


def _values(reports: list[dict]) -> Iterator[tuple[list[str], dict[str, float]]]:
    """The beginning of a line, and the figures, of each method of each model in each report."""
    for report in reports:
        by = report["name"] + ("" if report["metric"] == "F1" else f" ({report['metric']})")
        for model, methods in report["values"].items():
            for method, values in methods.items():
                yield [model, method, by], values


def _lines(reports: list[dict], cells: list[str]) -> Iterator[list[str]]:
    for begin, values in _values(reports):
        if not values.keys().isdisjoint(cells):
            yield [*begin, *(f"{values[c]:.3f}" if c in values else "" for c in cells)]


def _averages(reports: list[dict]) -> Iterator[list[str]]:
    """The means of who reports all of the paper's eight types, and all ten columns."""
    eight = [cell for name in PAPER for cell in _cells(name)[: len(DATASETS[name].types) or 1]]
    ten = [cell for name in PAPER for cell in _cells(name)]
    for begin, values in _values(reports):
        if values.keys() >= set(eight):
            whole = fmean(map(values.get, ten)) if values.keys() >= set(ten) else None
            mean = fmean(map(values.get, eight))
            yield [*begin, f"{mean:.3f}", "" if whole is None else f"{whole:.3f}"]


def _own_lines(figures: pd.DataFrame, dataset: str) -> Iterator[list[str]]:
    """A line for each setting and method; a cell has F1, its interval and number of questions."""
    if figures.empty:
        return
    own = figures[(figures["dataset"] == dataset) & (figures["question_type"] == "")]
    own = own[own["data_type"].isin([cell.split("/")[1] for cell in _cells(dataset)])]
    for _, rows in own.groupby([run.folder.parent for run in own["run"]], sort=False):
        run, cells = rows["run"].iloc[0], dict.fromkeys(_cells(dataset), "")
        for _, row in rows.iterrows():
            interval = f"[{row['f1_low']:.3f}, {row['f1_high']:.3f}]"
            cells[f"{dataset}/{row['data_type']}"] = f"{row['f1']:.3f} {interval} n {row['n']}"
        commit = str(run.config.get("provenance", {}).get("git_commit"))[:7]
        how = [f"seed {run.value('seed')}", f"prompts {str(run.value('prompts'))[:8]}"]
        by = ", ".join(["yours", *run.setting, *how, f"commit {commit}"])
        begin = [short_name(run.model), run.method, by]
        yield [harmless(cell, "markdown") for cell in (*begin, *cells.values())]


def _sorted(lines: Iterable[list[str]]) -> list[list[str]]:
    """By model, then by method, as the paper has them; else as they come."""
    lines, paper = list(lines), published()["f1"]
    models = [*paper, *(line[0] for line in lines)]
    methods = ["closed_book", *next(iter(paper.values())), *(line[1] for line in lines)]
    return sorted(lines, key=lambda line: (models.index(line[0]), methods.index(line[1])))
