"""Plots of the report: F1 by method with intervals, and F1 against seconds per question.

Each is written as the .png that is asked for and as a .pdf beside it. Colours are those of Okabe
and Ito, which people with colour-blindness can tell apart; no meaning hangs on a colour alone.
"""

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from utils.files import writing_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

COLOURS = {
    "closed_book": "#999999",
    "icl": "#0072B2",
    "da_icl": "#56B4E9",
    "prag": "#D55E00",
    "combine": "#009E73",
}
OTHER_COLOUR = "#CC79A7"
MARKERS = "osD^vP*X<>"
COLUMNS = 5  # panels side by side: with more a page's width would make the letters too small
SCATTER_COLUMNS = 3
MOST_NAMED_POINTS, LONGEST_NAME = 16, 14  # beyond them points are numbered, with a key below
LINE = 0.21  # inches
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # letters stay letters, as journals ask
}
FOOTNOTE = "§ other questions than the rest of its panel: not comparable"
OFFSETS = [  # of a label from its point, in points; the near ones are tried first
    (x * distance, y * distance)
    for distance in (6, 9, 13, 18, 24, 31, 39, 50)
    for x, y in sorted(product((1, -1, 0), (0, 1, -1)), key=lambda xy: abs(xy[1]))
    if (x, y) != (0, 0)
]


def plot_f1_by_method(figures: pd.DataFrame, path: Path) -> None:
    """F1 with its 95% interval: a line per model, setting and method, a panel per data type.

    `figures` is the frame of report.py's `figures_of`. The paper's figure is a
    diamond. More than `COLUMNS` panels go below each other.
    """
    panels = list(figures.groupby(["column", "dataset", "label"]))
    bands = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    lines = [_lines_of(pd.concat([rows for _, rows in band]).sort_index()) for band in bands]
    heights = [0.75 + LINE * len(of_band) for of_band in lines]
    names = [name for of_band in lines for name, _ in of_band]
    side = 0.35 + 0.065 * max(map(len, names))
    columns = min(COLUMNS, len(panels))
    most = max(figures["f1_high"].max(), figures["published_f1"].fillna(0).max())
    width = side + max(1.55 * columns, 3.4)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, sum(heights) + 0.3))
        outer = figure.add_gridspec(len(bands), 1, height_ratios=heights)
        for number, (band, of_band) in enumerate(zip(bands, lines, strict=True)):
            inner = outer[number].subgridspec(1, columns, wspace=0.08)
            for column, ((_, dataset, label), rows) in enumerate(band):
                axis = figure.add_subplot(inner[column])
                _bars(axis, rows, of_band)
                axis.set(xlim=(0, most + 0.3), xticks=[0, 0.5, 1] if most > 0.7 else [0, 0.5])
                axis.set_title(f"{dataset}\n{label}")
                if column:
                    axis.tick_params(axis="y", labelleft=False)
        bottom = 0.3 / figure.get_figheight()
        figure.subplots_adjust(
            left=side / width,
            right=1 - 0.08 / width,
            top=1 - 0.4 / figure.get_figheight(),
            bottom=bottom + 0.32 / figure.get_figheight(),
            hspace=0.8 / (sum(heights) / len(heights)),
        )
        _footer(figure, figures, paper=True)
        _save(figure, path)


def _lines_of(rows: pd.DataFrame) -> list[tuple[str, tuple | None]]:
    """The lines of a band from the top: (heading, None), or (method, its row's key)."""
    lines = []
    for (model, settings), group in rows.groupby(["model", "settings"], sort=False):
        lines.append((f"{model}, {settings}" if settings else model, None))
        lines += [(method, (model, settings, method)) for method in group["method"].unique()]
    return lines


def _bars(axis: Axes, rows: pd.DataFrame, lines: list[tuple[str, tuple | None]]) -> None:
    """One panel: a horizontal bar for each of `lines` that has a row."""
    places = {key: -number for number, (_, key) in enumerate(lines) if key}
    for _, row in rows.iterrows():
        y = places[row["model"], row["settings"], row["method"]]
        colour = _colour(row)
        axis.barh(y, row["f1"], height=0.72, color=colour, alpha=0.55)
        below, above = row["f1"] - row["f1_low"], row["f1_high"] - row["f1"]
        # a mean of rounded draws may leave the interval by a rounding error
        error = [[max(below, 0)], [max(above, 0)]]
        axis.errorbar(row["f1"], y, xerr=error, color="black", lw=0.9, capsize=2, capthick=0.9)
        end = max(row["f1_high"], row["f1"])
        if pd.notna(row["published_f1"]):
            axis.plot(row["published_f1"], y, "D", ms=3.5, mfc="white", mec="black", mew=0.8)
            end = max(end, row["published_f1"] + 0.01)
        text = f"{row['f1']:.2f}" + ("" if row["same_questions"] else " §")
        axis.text(end + 0.04, y, text, va="center", fontsize=7)
    axis.set_yticks([-number for number in range(len(lines))], [name for name, _ in lines])
    for tick, (_, key) in zip(axis.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if key else "bold")
    axis.tick_params(axis="y", length=0)
    axis.set(ylim=(0.6 - len(lines), 0.6))
    axis.set_xlabel("F1", labelpad=1)


def plot_f1_against_seconds(figures: pd.DataFrame, path: Path) -> bool:
    """F1 against seconds per question, a panel per data set: its `total`, or its data types.

    Runs that have not measured their time are left out; without any, no file is written, an old
    one is removed, and the answer is False.
    """
    timed = figures[figures["question_type"] == ""]
    if "measured_seconds" in timed:
        timed = timed.assign(seconds=timed["measured_seconds"] / timed["measured_questions"])
    else:
        timed = timed.assign(seconds=float("nan"))
    timed = timed[timed["seconds"] > 0]
    is_total = timed["data_type"] == "total"
    timed = timed[is_total | ~timed["dataset"].isin(timed["dataset"][is_total])]
    if timed.empty:
        path.unlink(missing_ok=True)
        path.with_suffix(".pdf").unlink(missing_ok=True)
        return False
    groups = timed[["model", "settings"]].drop_duplicates().itertuples(index=False, name=None)
    markers = {group: MARKERS[number % len(MARKERS)] for number, group in enumerate(groups)}
    panels = list(timed.groupby(["column", "dataset", "label"]))
    names = _point_names(timed, max(len(rows) for _, rows in panels))
    keys = [
        Line2D([], [], ls="", marker=marker, color="black", ms=5, label=", ".join(filter(None, g)))
        for g, marker in markers.items()
        if len(markers) > 1
    ]
    keys += [
        Line2D(
            [], [], ls="", marker=f"${name}$", color="black", mew=0, ms=4 + len(name), label=method
        )
        for method, name in names.items()
        if name != method
    ]
    columns = 2 if len(panels) == 4 else min(SCATTER_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    legend_columns = 1 if len(keys) < 6 else 2
    legend = (0.2 * -(-len(keys) // legend_columns) + 0.1) if keys else 0
    with plt.rc_context(STYLE):
        size = (max(3.0 * columns, 5.0 if legend_columns > 1 else 3.8), 2.9 * lines + legend + 0.3)
        figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, ((_, dataset, label), rows) in zip(axes.flat, panels, strict=False):
            _points(axis, rows, markers)
            axis.set_title(f"{dataset}, {label}")
        figure.tight_layout(rect=(0, (legend + 0.2) / size[1], 1, 1))
        if keys:
            figure.legend(
                handles=keys,
                loc="lower center",
                bbox_to_anchor=(0.5, 0.2 / size[1]),
                frameon=False,
                ncols=legend_columns,
            )
        for axis, (_, rows) in zip(axes.flat, panels, strict=False):
            _label_points(axis, rows, names)
        _footer(figure, timed)
        _save(figure, path)
    return True


def _point_names(rows: pd.DataFrame, crowd: int) -> dict[str, str]:
    """What to write beside a point of each method: the method, or a number where room is short.

    `crowd` is the number of points in the fullest panel.
    """
    methods = list(rows["method"].unique())
    if crowd <= MOST_NAMED_POINTS and max(map(len, methods)) <= LONGEST_NAME:
        return {method: method for method in methods}
    return {method: str(number) for number, method in enumerate(methods, start=1)}


def _points(axis: Axes, rows: pd.DataFrame, markers: dict) -> None:
    """One panel of points, hollow where the questions are others."""
    places = list(markers)
    for _, row in rows.iterrows():
        group = (row["model"], row["settings"])
        colour = _colour(row)
        axis.plot(
            row["seconds"],
            row["f1"],
            markers[group],
            color=colour,
            mfc=colour if row["same_questions"] else "white",
            mec=colour if not row["same_questions"] else "white",
            mew=0.6,
            ms=8.5 if places.index(group) == 0 else 6,  # so that equal points are both seen
            clip_on=False,
        )
    low, high = rows["seconds"].min(), rows["seconds"].max()
    room = max((high / low) ** 0.25, 1.6)
    axis.set_xscale("log")
    axis.set(xlim=(low / room, high * room), ylim=(0, min(1.12, rows["f1"].max() * 1.25 + 0.05)))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high * room < 30 * low else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="seconds per question (log scale)", ylabel="F1")


def _label_points(axis: Axes, rows: pd.DataFrame, names: dict[str, str]) -> None:
    """Write its method's name beside each point, where it covers no point and no other label.

    Points of one method that lie on each other have one label.
    """
    spots = axis.transData.transform(rows[["seconds", "f1"]].to_numpy())
    radius = 4 * axis.figure.dpi / 72
    taken = [Bbox([spot - radius, spot + radius]) for spot in spots]
    labelled: list[tuple[str, Any]] = []
    for (_, row), spot in zip(rows.iterrows(), spots, strict=True):
        name = names[row["method"]] + ("" if row["same_questions"] else " §")
        if any(name == other and abs(spot - at).max() < 2 * radius for other, at in labelled):
            continue
        labelled.append((name, spot))
        costs = {offset: _cost(axis, row, name, offset, taken) for offset in OFFSETS}
        best = min(OFFSETS, key=lambda offset: costs[offset])
        label = _label(axis, row, name, best)
        taken.append(_extent(label))


def _label(axis: Axes, row: pd.Series, name: str, offset: tuple[float, float]) -> Annotation:
    """`name` at `offset` from the row's point, with a line to it where it is far."""
    x, y = offset
    return axis.annotate(
        name,
        (row["seconds"], row["f1"]),
        offset,
        textcoords="offset points",
        ha={1: "left", -1: "right", 0: "center"}[(x > 0) - (x < 0)],
        va={1: "bottom", -1: "top", 0: "center"}[(y > 0) - (y < 0)],
        fontsize=7,
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "grey"}
        if max(abs(x), abs(y)) > 9
        else None,
    )


def _cost(axis: Axes, row: pd.Series, name: str, offset: tuple, taken: list[Bbox]) -> int:
    """How badly a label lies there: what it covers, and whether it leaves the panel."""
    label = _label(axis, row, name, offset)
    box, frame = _extent(label), axis.get_window_extent()
    label.remove()
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    return box.count_overlaps(taken) + 100 * outside


def _extent(label: Annotation) -> Bbox:
    """The pixels that the text of `label` covers."""
    label.update_positions(label.figure.canvas.get_renderer())
    return Text.get_window_extent(label)


def _colour(row: pd.Series) -> str:
    """The colour of the row's method; a method with settings of its own has that of the plain."""
    return COLOURS.get(row["run"].base_method, OTHER_COLOUR)


def _footer(figure: Figure, figures: pd.DataFrame, paper: bool = False) -> None:
    """What the marks mean, at the bottom."""
    notes = ["bars: mean F1, whiskers: 95% interval"] if paper else []
    if paper and figures["published_f1"].notna().any():
        notes.append("diamonds: the paper's F1")
    if not figures["same_questions"].all():
        notes.append(FOOTNOTE)
    if notes:
        figure.text(0.01, 0.06 / figure.get_figheight(), "; ".join(notes), fontsize=6.5)


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as .png and .pdf, the same bytes for the same figure."""
    for file, metadata in ((path, {}), (path.with_suffix(".pdf"), {"CreationDate": None})):
        with writing_file(file) as temporary:
            figure.savefig(temporary, format=file.suffix[1:], metadata=metadata)
    plt.close(figure)
