"""The report's plots, made of the frame of `comparing.figures_of`, each as .png and .pdf."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.files import writing_file
from utils.reporting.tables import harmless

# of Okabe and Ito: people with colour-blindness can tell them apart
COLOURS = {
    "closed_book": "#999999",
    "icl": "#0072B2",
    "da_icl": "#56B4E9",
    "prag": "#D55E00",
    "combine": "#009E73",
    "flare": "#E69F00",
    "dragin": "#F0E442",
}
MARKERS = "osD^vP*X<>ph8d"
LINE = 0.21  # inches
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
}


def plot_f1_by_method(figures: pd.DataFrame, path: Path) -> None:
    """F1 with its 95% interval, a line per method and setting; the paper's F1 is a diamond."""
    names, panels = _lines_and_panels(figures)
    width = max(0.5 + 0.065 * max(map(len, names)) + 1.6 * len(panels), 3.5)  # the notes need 3.5
    most = max(figures["f1_high"].max(), figures["published_f1"].fillna(0).max())
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(panels, (width, 1.2 + LINE * len(names)), True)
        for axis, rows in zip(axes, panels, strict=True):
            _bars(axis, rows.assign(y=[names.index(name) for name in rows["name"]]))
            axis.set(xticks=[0, 0.5, 1] if most > 0.7 else [0, 0.5], xlim=(0, most + 0.35))
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        notes = "bars: mean F1, whiskers: 95% interval"
        notes += "; diamonds: the paper's F1" if figures["published_f1"].notna().any() else ""
        figure.supxlabel(notes, fontsize=6.5, x=0.01, ha="left")
        _save(figure, path)


def _bars(axis: Axes, rows: pd.DataFrame) -> None:
    """One panel: a horizontal bar for each row, at its `y`."""
    # a mean of rounded draws may leave the interval by a rounding error
    errors = [(rows["f1"] - rows["f1_low"]).clip(0), (rows["f1_high"] - rows["f1"]).clip(0)]
    whiskers = {"lw": 0.9, "capsize": 2, "capthick": 0.9}
    colours = rows["colour"] + "8C"  # half transparent
    axis.barh(rows["y"], rows["f1"], height=0.72, xerr=errors, color=colours, error_kw=whiskers)
    axis.plot(rows["published_f1"], rows["y"], "D", ms=3.5, mfc="white", mec="black", mew=0.8)
    place = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center"}
    for y, f1 in zip(rows["y"], rows["f1"], strict=True):
        axis.text(1, y, f"{f1:.2f}", fontsize=7, **place)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("F1", labelpad=1)


def plot_f1_against_seconds(figures: pd.DataFrame, path: Path) -> None:
    """F1 against seconds per question, a panel per data type (`total` alone if there is one). Runs
    that have not measured their time are left out; without any, an old file is removed."""
    timed = figures[figures["seconds_per_question"] > 0]
    is_total = timed["data_type"] == "total"
    timed = timed[is_total | ~timed["dataset"].isin(timed["dataset"][is_total])]
    if timed.empty:
        path.unlink(missing_ok=True)
        path.with_suffix(".pdf").unlink(missing_ok=True)
        return
    names, panels = _lines_and_panels(timed)
    width = 0.6 + 0.065 * max(map(len, names)) + 2.4 * len(panels)
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(panels, (width, max(2.6, LINE * len(names))), False)
        points = {}
        for axis, rows in zip(axes, panels, strict=True):
            for row in rows.itertuples():
                look = {"color": row.colour, "mec": "white", "mew": 0.6, "ms": 7, "clip_on": False}
                marker = MARKERS[names.index(row.name) % len(MARKERS)]
                [points[row.name]] = axis.plot(row.seconds_per_question, row.f1, marker, **look)
            right, top = rows["seconds_per_question"].max() * 1.1, rows["f1"].max() * 1.2 + 0.05
            axis.set(xlabel="seconds per question", ylabel="F1")
            axis.set(xlim=(0, right), ylim=(0, min(1.02, top)))
            axis.locator_params(axis="x", nbins=4)
        figure.legend(points.values(), points.keys(), loc="outside right upper", frameon=False)
        _save(figure, path)


def _lines_and_panels(figures: pd.DataFrame) -> tuple[list[str], list[pd.DataFrame]]:
    """The names of a plot's lines, and the figures of each data type with `name` and `colour`."""
    several = figures["model"].nunique() > 1
    names = []
    for row in figures.itertuples():
        group = f"group {row.group}" if row.group > 1 else ""
        words = [row.model if several else "", group, row.settings, row.method]
        names.append(harmless(", ".join(filter(None, words)), "plot"))
    colours = [COLOURS.get(run.base_method, "#CC79A7") for run in figures["run"]]
    panels = figures.assign(name=names, colour=colours).groupby("column")
    return list(dict.fromkeys(names)), [rows for _, rows in panels]


def _panels(panels: list[pd.DataFrame], size: tuple, sharey: bool) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches with an axis for each panel, side by side, titled."""
    figure = Figure(figsize=size, layout="constrained")
    [axes] = figure.subplots(1, len(panels), squeeze=False, sharey=sharey)
    for axis, rows in zip(axes, panels, strict=True):
        title = [harmless(rows[name].iloc[0], "plot") for name in ("dataset", "label")]
        axis.set_title("\n".join(title))
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as .png and .pdf, the same bytes for the same figure."""
    for file, metadata in ((path, {}), (path.with_suffix(".pdf"), {"CreationDate": None})):
        with writing_file(file) as temporary:
            figure.savefig(temporary, format=file.suffix[1:], metadata=metadata)
