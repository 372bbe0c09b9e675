r"""How far each stage is from the machine's own matrix products, as one figure.

    python benchmarks/speed_plot.py --speed benchmarks/results/speed_*_cpu.json \
        --writing benchmarks/results/writing_*_cpu.json --out docs/speed.png

Reads what `speed.py` and `writing.py` measured. A bar is the share of the limit that a way reaches;
beside it are the tokens a second. The limit is that of the same run, so files of different machines
can be in one figure.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
from utils.arguments import new_parser
from utils.files import read_object, relative
from utils.running import run_stage

NAMES = {"published": "published way", "unpadded": "without padding", "ours": "this toolkit"}
NAMES |= {"neighbours": "this toolkit, beside neighbours", "closed_book": "closed_book"}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--speed", type=Path, nargs="+", required=True, help="results of speed.py")
    parser.add_argument("--writing", type=Path, nargs="*", default=[], help="of writing.py")
    parser.add_argument("--out", type=Path, default=Path("docs/speed.png"), help="the figure")
    return parser.parse_args(arguments)


def bars_of(options: argparse.Namespace) -> list[tuple[str, str, float, float]]:
    """Model, what is done, its share of the limit, its tokens a second."""
    bars = []
    for path in options.speed:
        result = read_object(path, "the result of speed.py")
        model = result["arguments"]["architecture"] or Path(result["arguments"]["model"]).name
        for stage, ways in (("encode", ("published", "unpadded", "ours", "neighbours")),
                            ("answer", ("published", "ours", "closed_book"))):  # fmt: skip
            for way in (way for way in ways if result[stage][way].get("utilisation")):
                own = result[stage][way]
                rate = own["tokens"] / (own["seconds_per_item"] * own["items"])
                rate = own.get("tokens_per_second", rate)  # of encoding: without padding
                name = "prag" if (stage, way) == ("answer", "ours") else NAMES[way]
                bars.append((model, f"{stage}: {name}", own["utilisation"], rate))
    for path in options.writing:
        result = read_object(path, "the result of writing.py")
        for row in (row for row in result["rows"] if row.get("utilisation")):  # none of a server
            name = f"write: {row['way']}, {row['width']} side by side"
            model = Path(result["arguments"]["model_name"]).name
            bars.append((model, name, row["utilisation"], row["tokens_per_second"]))
    return bars


def main() -> None:
    """Read, draw, save."""
    options = parse_arguments()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = bars_of(options)
    models = list(dict.fromkeys(model for model, *_ in bars))
    counts = [sum(one[0] == model for one in bars) for model in models]
    figure, axes = pyplot.subplots(
        len(models), 1, figsize=(8, 0.32 * len(bars) + 1.2 * len(models)), sharex=True,
        squeeze=False, height_ratios=counts, layout="constrained",
    )  # fmt: skip
    for model, axis in zip(models, axes[:, 0], strict=True):
        own = [bar[1:] for bar in bars if bar[0] == model][::-1]
        axis.barh([name for name, _, _ in own], [100 * share for _, share, _ in own], color="C0")
        for place, (_, share, rate) in enumerate(own):
            axis.text(100 * share + 1, place, f"{share:.0%}, {rate:,.0f} tokens/s", va="center")
        axis.set_title(model, loc="left")
        axis.set_xlim(0, 110)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("% of the machine's own rate of matrix products")
    figure.savefig(options.out, dpi=110)
    print(f"the figure is {relative(options.out)}")


if __name__ == "__main__":
    run_stage(main)
