"""The figures of `effect.py`: F1 by condition, and prag against learning rate and epochs."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from utils.files import writing_file
from utils.reporting.plots import COLOURS, STYLE

PAPER = (3e-4, 1)  # learning rate and epochs
EPOCH_COLOURS = ("#56B4E9", "#0072B2", "#E69F00", "#D55E00", "#CC79A7", "#999999")
MARKERS = "os^DvP"
# condition -> what the figure calls it, in its order from the top; None is a gap
SHOWN = {
    "closed_book": "closed_book",
    "icl": "icl",
    "prag": "prag",
    "combine": "combine",
    "gap 1": None,
    "prag, untrained adapters": "prag, untrained adapters",
    "prag, adapters of other passages": "prag, other passages' adapters",
    "prag, the paper's rate and epochs": "prag, paper's rate and epochs",
    "gap 2": None,
    "prag, first passage's adapter": "prag, first adapter only",
    "prag, gold passages": "prag, gold passages",
    "prag, warm-up": "prag, warm-up",
    "prag, warm-up, base once": "prag, warm-up, base once",
    "gap 3": None,
    "combine, first passage's adapter": "combine, first adapter only",
    "combine, half of the sum": "combine, half of the sum",
    "combine, gold passages": "combine, gold passages",
    "icl, gold passages": "icl, gold passages",
    "gap 4": None,
    "icl, eight passages": "icl, eight passages",
    "combine, eight passages, first passage's adapter": "combine, eight, first adapter",
    "combine, eight passages, adapters of the first three": "combine, eight, three adapters",
    "gap 5": None,
    "prag, three passes": "prag, three passes alone",
    "prag, neighbours": "prag, neighbours",
    "combine, neighbours": "combine, neighbours",
    "combine, neighbours, first passage's adapter": "combine, neighbours, first adapter",
    "prag, neighbours, without the right passage": "prag, neighbours, not the right one",
    "combine, neighbours, eight passages, first three": "combine, neighbours, eight, three",
}


def plot_conditions(summary: dict[str, dict[str, dict]], path: Path) -> None:
    """A bar with its 95% interval for each condition; a panel per question type."""
    columns = list(next(iter(summary.values())))
    lines = [(name, label) for name, label in SHOWN.items() if label is None or name in summary]
    places, y = {}, 0.0
    for name, label in lines:
        y -= 0.45 if label is None else 1
        if label is not None:
            places[name] = y
    with plt.rc_context(STYLE):
        size = (2.3 + 1.75 * len(columns), 0.7 + 0.2 * -y)
        figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
        for axis, column in zip(axes[0], columns, strict=True):
            for name, place in places.items():
                entry = summary[name][column]
                colour = COLOURS[name.partition(",")[0]]
                axis.barh(place, entry["f1"], height=0.74, color=colour, alpha=0.55)
                below = max(entry["f1"] - entry["low"], 0)
                above = max(entry["high"] - entry["f1"], 0)
                error = [[below], [above]]
                axis.errorbar(entry["f1"], place, xerr=error, color="black", lw=0.9, capsize=2)
                text = f"{entry['f1']:.2f}"
                axis.text(max(entry["high"], 0) + 0.03, place, text, va="center", fontsize=7)
            kind = column.replace("_", "-")
            axis.set_title(f"{kind}, {summary['icl'][column]['n']} questions")
            axis.set(xlim=(0, 1.2), xticks=[0, 0.5, 1], ylim=(y - 0.7, -0.3))
            axis.set_xlabel("F1", labelpad=1)
            axis.tick_params(axis="y", length=0)
        axes[0][0].set_yticks(list(places.values()), [SHOWN[name] for name in places])
        figure.tight_layout(w_pad=0.6)
        _save(figure, path)


def plot_sweep(rows: list[dict], chosen: tuple[float, int], path: Path) -> None:
    """F1 on dev against the learning rate, a line per number of epochs; a panel per method.

    The paper's setting and the `chosen` one (learning rate, epochs) are marked.
    """
    context = [row for row in rows if row["method"] == "icl"]
    methods = [m for m in ("prag", "combine") if any(row["method"] == m for row in rows)]
    epochs = sorted({row["num_train_epochs"] for row in rows if row["method"] == "prag"})
    with plt.rc_context(STYLE):
        size = (2.9 * len(methods) + 0.4, 2.6)
        figure, axes = plt.subplots(1, len(methods), figsize=size, squeeze=False, sharey=True)
        for axis, method in zip(axes[0], methods, strict=True):
            for number, count in enumerate(epochs):
                line = [
                    row
                    for row in rows
                    if row["method"] == method and row["num_train_epochs"] == count
                ]
                line.sort(key=lambda row: row["learning_rate"])
                rates = [row["learning_rate"] for row in line]
                f1 = [row["f1"] for row in line]
                error = [
                    [max(row["f1"] - row["low"], 0) for row in line],
                    [max(row["high"] - row["f1"], 0) for row in line],
                ]
                label = f"{count} epoch" + ("s" if count > 1 else "")
                axis.errorbar(
                    rates,
                    f1,
                    yerr=error,
                    color=EPOCH_COLOURS[number],
                    marker=MARKERS[number],
                    ms=4,
                    lw=1.2,
                    elinewidth=0.6,
                    capsize=1.5,
                    label=label,
                )
            up = 1 if method == "prag" else -1.9  # there is room
            for setting, text, offset in (
                (PAPER, "paper's\nsetting", (-3, 18 * up)),
                (chosen, "chosen", (10, 18 * up)),
            ):
                _mark(axis, rows, method, setting, text, offset)
            if context:
                axis.axhline(context[0]["f1"], color=COLOURS["icl"], lw=0.9, ls="--")
                side = max(row["learning_rate"] for row in rows)
                name = {"ha": "right", "color": COLOURS["icl"], "fontsize": 7}
                axis.text(side, context[0]["f1"] + 0.07, "icl", **name)  # above the error bars
            axis.set_xscale("log")
            axis.set_xticks([3e-4, 1e-3, 3e-3], ["3e-4", "1e-3", "3e-3"])
            axis.set_xticks(sorted({row["learning_rate"] for row in rows}), minor=True)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(ylim=(0, 1), xlabel="learning rate", title=f"{method}, dev")
        axes[0][0].set_ylabel("F1")
        axes[0][-1].legend(frameon=False, fontsize=7, loc="lower left")
        figure.tight_layout()
        _save(figure, path)


def _mark(
    axis: plt.Axes, rows: list[dict], method: str, setting: tuple, text: str, offset: tuple
) -> None:
    """Name the point of `method` that has `setting`, if there is one."""
    for row in rows:
        if row["method"] == method and setting == (row["learning_rate"], row["num_train_epochs"]):
            point = (row["learning_rate"], row["f1"])
            axis.plot(*point, "o", ms=9, mfc="none", mec="black", mew=0.9)
            arrow = {"arrowstyle": "-", "lw": 0.6}
            axis.annotate(
                text, point, offset, textcoords="offset points", fontsize=7, arrowprops=arrow
            )


def _save(figure: Figure, path: Path) -> None:
    with writing_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
    plt.close(figure)
