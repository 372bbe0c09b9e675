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
    places, y = {}, 0.0
    for name, label in SHOWN.items():
        if label is None:
            y -= 0.45
        elif name in summary:
            y -= 1
            places[name] = y
    colours = [COLOURS[name.partition(",")[0]] for name in places]
    with plt.rc_context(STYLE):
        size = (2.3 + 1.75 * len(columns), 0.7 + 0.2 * -y)
        figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
        for axis, column in zip(axes[0], columns, strict=True):
            entries, rows = [summary[name][column] for name in places], list(places.values())
            f1 = [entry["f1"] for entry in entries]
            axis.barh(rows, f1, height=0.74, color=colours, alpha=0.55)
            whiskers = {"color": "black", "fmt": "none", "lw": 0.9, "capsize": 2}
            axis.errorbar(f1, rows, xerr=_errors(entries), **whiskers)
            for entry, place in zip(entries, rows, strict=True):
                end = max(entry["high"], 0) + 0.03
                axis.text(end, place, f"{entry['f1']:.2f}", va="center", fontsize=7)
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
    rows = sorted(rows, key=lambda row: row["learning_rate"])
    rates = sorted({row["learning_rate"] for row in rows})
    context = [row["f1"] for row in rows if row["method"] == "icl"]
    methods = [m for m in ("prag", "combine") if any(row["method"] == m for row in rows)]
    epochs = sorted({row["num_train_epochs"] for row in rows if row["method"] == "prag"})
    with plt.rc_context(STYLE):
        size = (2.9 * len(methods) + 0.4, 2.6)
        figure, axes = plt.subplots(1, len(methods), figsize=size, squeeze=False, sharey=True)
        for axis, method in zip(axes[0], methods, strict=True):
            own = [row for row in rows if row["method"] == method]
            for number, count in enumerate(epochs):
                line = [row for row in own if row["num_train_epochs"] == count]
                x, f1 = ([row[name] for row in line] for name in ("learning_rate", "f1"))
                look = {"color": EPOCH_COLOURS[number], "marker": MARKERS[number], "ms": 4}
                look |= {"lw": 1.2, "elinewidth": 0.6, "capsize": 1.5}
                label = f"{count} epoch" + ("s" if count > 1 else "")
                axis.errorbar(x, f1, yerr=_errors(line), label=label, **look)
            up = 1 if method == "prag" else -1.9  # there is room
            _mark(axis, own, PAPER, "paper's\nsetting", (-3, 18 * up))
            _mark(axis, own, chosen, "chosen", (10, 18 * up))
            if context:
                axis.axhline(context[0], color=COLOURS["icl"], lw=0.9, ls="--")
                name = {"ha": "right", "color": COLOURS["icl"], "fontsize": 7}
                axis.text(rates[-1], context[0] + 0.07, "icl", **name)  # above the error bars
            axis.set_xscale("log")
            axis.set_xticks([3e-4, 1e-3, 3e-3], ["3e-4", "1e-3", "3e-3"])
            axis.set_xticks(rates, minor=True)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set(ylim=(0, 1), xlabel="learning rate", title=f"{method}, dev")
        axes[0][0].set_ylabel("F1")
        axes[0][-1].legend(frameon=False, fontsize=7, loc="lower left")
        figure.tight_layout()
        _save(figure, path)


def _errors(entries: list[dict]) -> list[list[float]]:
    """How far the intervals reach below and above the means."""
    below = [max(entry["f1"] - entry["low"], 0) for entry in entries]
    return [below, [max(entry["high"] - entry["f1"], 0) for entry in entries]]


def _mark(axis: plt.Axes, rows: list[dict], setting: tuple, text: str, offset: tuple) -> None:
    """Name the point among `rows` that has `setting`, if there is one."""
    for row in rows:
        if setting == (row["learning_rate"], row["num_train_epochs"]):
            point = (row["learning_rate"], row["f1"])
            axis.plot(*point, "o", ms=9, mfc="none", mec="black", mew=0.9)
            how = {"textcoords": "offset points", "arrowprops": {"arrowstyle": "-", "lw": 0.6}}
            axis.annotate(text, point, offset, fontsize=7, **how)


def _save(figure: Figure, path: Path) -> None:
    with writing_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
    plt.close(figure)
