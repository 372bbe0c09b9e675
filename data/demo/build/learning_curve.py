"""F1 on dev against the tokens that the demo model was trained on, and the figure of it.

    python data/demo/build/learning_curve.py --root /tmp/curve \
        --work data/demo/build/work --learning_rate 4e-3 --num_train_epochs 1

Takes the models that `train_model.py --keep_every 100` left in its work folders, runs the three
stages on dev with each under `--root`, and writes `docs/demo_results/learning_curve.json` and
`docs/demo_learning_curve.png`. Only the last model of each folder has had the whole fall of the
learning rate.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "src"))
from utils.arguments import new_parser, positive_integer, positive_number
from utils.files import write_json, writing_file
from utils.running import run_stage

REPOSITORY = Path(__file__).parents[3]
METHODS = ("icl", "prag", "combine")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--work", type=Path, nargs="+", required=True, help="work folders of train_model.py"
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that the stages work in")
    parser.add_argument(
        "--steps", type=positive_integer, nargs="*", help="models to take (not set: all)"
    )
    parser.add_argument(
        "--tokens_per_step",
        type=positive_integer,
        default=14600,
        help="tokens of a training step, from its log",
    )
    parser.add_argument(
        "--learning_rate", type=positive_number, required=True, help="of the adapters"
    )
    parser.add_argument(
        "--num_train_epochs", type=positive_integer, required=True, help="of the adapters"
    )
    return parser.parse_args()


def run_stages(model: Path, root: Path, options: argparse.Namespace) -> None:
    """Augment, encode and answer the dev questions with `model` in its own root.

    A passage whose list is never valid is dropped for all models that share a root.
    """
    environment = {**os.environ, "PRAG_ROOT": str(root)}
    common = ["--model_name", str(model), "--prompts", "demo", "--dataset", "demo"]
    common += ["--data_type", "dev"]
    train = ["--learning_rate", str(options.learning_rate)]
    train += ["--num_train_epochs", str(options.num_train_epochs)]
    augment = ["--data_path", "data/demo/questions.json", "--index_name", "demo"]
    augment += ["--max_new_tokens", "200", "--temperature", "0.3", "--batch_size", "64"]
    commands = [["src/augment.py", *common, *augment], ["src/encode.py", *common, *train]]
    answer = ["src/inference.py", *common, *train, "--max_new_tokens", "12"]
    commands += [[*answer, "--inference_method", method] for method in METHODS]
    if not (root / "index/demo").exists():
        index = ["prep_elastic.py", "--data_path", "data/demo/corpus.tsv", "--index_name", "demo"]
        commands.insert(0, index)
    for command in commands:
        subprocess.run([sys.executable, *command], check=True, cwd=REPOSITORY, env=environment)


def size_of(model: Path) -> int:
    """The number of parameters in a model's folder."""
    from safetensors.torch import load_file

    return sum(tensor.numel() for tensor in load_file(model / "model.safetensors").values())


def plot(rows: list[dict], path: Path) -> None:
    """F1 with its interval against tokens: a line per method, broken for a second size."""
    import matplotlib.pyplot as plt

    from utils.reporting.plots import COLOURS, STYLE

    sizes = sorted({row["parameters"] for row in rows})
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(3.4, 2.6))
        for method in METHODS:
            for size in sizes:
                line = [r for r in rows if r["method"] == method and r["parameters"] == size]
                tokens, color = [r["tokens"] / 1e6 for r in line], COLOURS[method]
                style = "o-" if size == sizes[0] else "s--"
                axis.plot(tokens, [r["f1"] for r in line], style, ms=3, color=color)
                low, high = ([row[name] for row in line] for name in ("low", "high"))
                axis.fill_between(tokens, low, high, color=color, alpha=0.15, lw=0)
            axis.annotate(
                method,
                (tokens[-1], line[-1]["f1"]),
                (4, {"combine": -7}.get(method, 0)),
                textcoords="offset points",
                color=color,
                fontsize=7,
            )
        for size, style in zip(sizes, ("o-", "s--"), strict=False):
            label = f"{size / 1e6:.1f}M parameters"
            axis.plot([], [], style, ms=3, color="0.4", label=label)
        axis.legend(fontsize=6, frameon=False, loc="lower right")
        axis.set(ylim=(0, 1), xlabel="training tokens, millions", ylabel="F1 on dev")
        axis.set_xlim(0, axis.get_xlim()[1] * 1.12)
        figure.tight_layout()
        with writing_file(path) as temporary:
            figure.savefig(temporary, format="png")
        plt.close(figure)


def main() -> None:
    """Run the stages with every model, then write results and figure."""
    options = parse_arguments()
    # pandas takes long to import: not before the flags are known to be good
    from utils.reporting.runs import read_runs
    from utils.reporting.statistics import bootstrap_interval

    options.root = options.root.resolve()
    found = [folder for work in options.work for folder in work.glob("model_*")]
    models = {int(folder.name.removeprefix("model_")): folder for folder in found}
    steps = sorted(options.steps or models)
    rows = []
    for step in steps:
        for name in TOKENIZER:
            shutil.copy(REPOSITORY / "data/demo/demo-model" / name, models[step])
        own = options.root / models[step].name
        run_stages(models[step].resolve(), own, options)
        for run in read_runs(own / "output", dataset="demo")[0]:
            low, high = bootstrap_interval(run.scores["f1"])
            f1 = float(run.scores["f1"].mean())
            numbers = {"f1": f1, "low": low, "high": high}
            place = {"parameters": size_of(models[step]), "step": step}
            place |= {"tokens": step * options.tokens_per_step, "method": run.method}
            rows.append({**place, **{name: round(value, 4) for name, value in numbers.items()}})
    rows.sort(key=lambda row: (row["step"], METHODS.index(row["method"])))
    docs = REPOSITORY / "docs"
    settings = {"learning_rate": options.learning_rate, "epochs": options.num_train_epochs}
    write_json(docs / "demo_results/learning_curve.json", {**settings, "rows": rows})
    plot(rows, docs / "demo_learning_curve.png")


if __name__ == "__main__":
    run_stage(main)
