"""The demo's effect: table, controls and figures from what `configs/demo_effect.sh` has run.

    python benchmarks/effect.py --root effect --data_type test --learning_rate 4e-3 \
        --num_train_epochs 1 --warm_learning_rate 4e-3

Reads `{root}/seed=N/` (with `without_gold/`, `topk=8/`, `topk=1/`, `golden/` below it) and
`{root}/sweep/`. Writes `effect.csv` (F1 of every question, condition and seed), `effect.json`
(summary, machine, versions) and `effect.md` (the table) into `--output`, and the figures
`demo_effect.png` and `demo_sweep.png` into its parent folder. An interval is over questions, of
their means over the seeds that a condition has; it is tested against the same seeds of `icl` and
`prag` with the same passages, and an `icl` or `prag` from others against the plain one.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils.arguments import new_parser, positive_integer, positive_number
from utils.files import read_json, write_json, write_text
from utils.recipe import Recipe
from utils.running import run_stage


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add, default = parser.add_argument, Path(__file__).parents[1] / "docs/demo_results"
    add("--root", type=Path, required=True, help="folder of the runs")
    add("--data_type", default="test", help="split of the questions")
    add("--learning_rate", type=positive_number, required=True, help="of the plain adapters")
    add("--num_train_epochs", type=positive_integer, required=True, help="of the adapters")
    add("--warm_learning_rate", type=positive_number, required=True, help="after the warm-up")
    add("--output", type=Path, default=default, help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Read, compare, write."""
    options = parse_arguments()
    # pandas and matplotlib take seconds to import: not before the flags are known to be good
    import effect_summary as summing
    import pandas as pd
    from effect_plots import plot_conditions, plot_sweep
    from machine import machine

    from utils.provenance import provenance

    epochs = options.num_train_epochs
    plain = Recipe(learning_rate=options.learning_rate, num_train_epochs=epochs)
    warm = {"learning_rate": options.warm_learning_rate, "init_adapter": "warmup"}
    recipes = {"plain": plain, "paper": Recipe(), "warm": replace(plain, **warm)}
    recipes["long"] = replace(plain, num_train_epochs=3, schedule="halving")
    recipes["beside"] = replace(recipes["long"], neighbours=2)
    for name in ("plain", "beside"):
        recipes[f"{name}_others"] = replace(recipes[name], adapters="others")
    trainings = {name: recipe.training_label for name, recipe in recipes.items()}
    questions = summing.questions_of(options.data_type)
    folders = summing.seed_folders(options.root)
    scores: dict[str, dict[int, pd.Series]] = {name: {} for name in summing.CONDITIONS}
    coverage = {}
    for seed, folder in folders.items():
        for name, f1 in summing.read_scores(folder, trainings).items():
            scores[name][seed] = f1
        coverage[seed] = summing.coverage_of(folder, questions, options.data_type)
    scores = {name: of_seed for name, of_seed in scores.items() if of_seed}
    answered = questions.loc[questions.index.isin(scores["prag"][next(iter(folders))].index)]
    summary = summing.summary_of(scores, answered)
    covered = summing.coverage_summary(scores["prag"], coverage, questions["type"])
    sweep = summing.sweep_of(options.root / "sweep")

    wrong: dict[str, dict[int, dict[str, int]]] = {}
    for name in ("prag", "prag, first passage's adapter"):
        method = summing.CONDITIONS[name][2]
        for seed in scores.get(name, {}):
            pattern = f"output/*/*/demo/{trainings['plain']}/*/{method}/{options.data_type}"
            [leaf] = folders[seed].glob(pattern)
            predictions = read_json(leaf / "predict.json", "the predictions")
            counts = summing.names_in_wrong_answers(predictions, answered["type"])
            wrong.setdefault(name, {})[seed] = counts

    columns = {"qid": answered["qid"], "type": answered["type"]}
    for seed in folders:
        columns[f"coverage|{seed}"] = coverage[seed].reindex(answered.index)
        for name in (name for name, of_seed in scores.items() if seed in of_seed):
            columns[f"{name}|{seed}"] = scores[name][seed].reindex(answered.index).round(3)
    table = pd.DataFrame(columns)
    write_text(options.output / "effect.csv", table.to_csv(index=False, float_format="%g"))
    result = {
        "settings": {k: v for k, v in vars(options).items() if k not in ("root", "output")},
        "machine": machine(),
        **provenance(),
        "conditions": summary,
        "coverage": covered,
        "wrong_single_hop_answers_with_the_subjects_name": wrong,
        "sweep_on_dev": sweep,
    }
    write_json(options.output / "effect.json", result)
    text = summing.table_of(summary, covered)
    write_text(options.output / "effect.md", text)
    plot_conditions(summary, options.output.parent / "demo_effect.png")
    if sweep:
        chosen = (options.learning_rate, epochs)
        plot_sweep(sweep, chosen, options.output.parent / "demo_sweep.png")
    print(text)
    print(json.dumps({"results": str(options.output)}))


if __name__ == "__main__":
    run_stage(main)
