"""What `effect.py` reads of the demo's runs, and the figures that it makes of them."""

import sys
from pathlib import Path

import pandas as pd

from utils.files import hash_json, read_json, relative
from utils.metrics import normalize
from utils.reporting.comparing import REFERENCES
from utils.reporting.runs import read_runs
from utils.reporting.statistics import LEVEL, bootstrap_interval, paired_test
from utils.running import InputError

QUESTIONS = Path(__file__).parents[1] / "data/demo/questions.json"
# if the passages are others, a condition is tested against what answers from the same ones
OTHER_PASSAGES = ("eight passages", "one retrieved passage", "gold passages")
BESIDE = "neighbours"  # adapters that were trained beside two neighbours
# condition -> (folder below that of the seed, training, method's folder)
CONDITIONS = {
    "closed_book": ("", "plain", "closed_book"),
    "icl": ("", "plain", "icl"),
    "prag": ("", "plain", "prag"),
    "combine": ("", "plain", "combine"),
    "prag, first passage's adapter": ("", "plain", "prag_topk=1"),
    "combine, first passage's adapter": ("", "plain", "combine_topk=1"),
    "prag, half of the sum": ("", "plain", "prag_scale=0.5"),
    "combine, half of the sum": ("", "plain", "combine_scale=0.5"),
    "prag, warm-up": ("", "warm", "prag"),
    "combine, warm-up": ("", "warm", "combine"),
    "prag, warm-up, base once": ("", "warm", "prag_base_once"),
    "combine, warm-up, base once": ("", "warm", "combine_base_once"),
    "prag, the paper's rate and epochs": ("", "paper", "prag"),
    "combine, the paper's rate and epochs": ("", "paper", "combine"),
    "prag, untrained adapters": ("", "plain", "prag_untrained"),
    "prag, adapters of other passages": ("", "plain_others", "prag"),
    "prag, three passes": ("", "long", "prag"),
    "combine, three passes": ("", "long", "combine"),
    f"prag, {BESIDE}": ("", "beside", "prag"),
    f"combine, {BESIDE}": ("", "beside", "combine"),
    f"prag, {BESIDE}, first passage's adapter": ("", "beside", "prag_topk=1"),
    f"combine, {BESIDE}, first passage's adapter": ("", "beside", "combine_topk=1"),
    f"prag, {BESIDE}, adapters of other passages": ("", "beside_others", "prag"),
    f"prag, {BESIDE}, without the right passage": ("without_gold", "beside", "prag"),
    f"prag, {BESIDE}, only gold passages": ("golden", "beside", "prag"),
    f"combine, {BESIDE}, eight passages": ("topk=8", "beside", "combine"),
    f"combine, {BESIDE}, eight passages, first three": ("topk=8", "beside", "combine_topk=3"),
    "icl, eight passages": ("topk=8", "plain", "icl"),
    "combine, eight passages, adapters of the first three": ("topk=8", "plain", "combine_topk=3"),
    "combine, eight passages, first passage's adapter": ("topk=8", "plain", "combine_topk=1"),
    "icl, one retrieved passage": ("topk=1", "plain", "icl"),
    "prag, one retrieved passage": ("topk=1", "plain", "prag"),
    "combine, one retrieved passage": ("topk=1", "plain", "combine"),
    "icl, gold passages": ("golden", "plain", "icl"),
    "prag, gold passages": ("golden", "plain", "prag"),
    "combine, gold passages": ("golden", "plain", "combine"),
}
# what the three pairs of the passage that holds the answer have of the question's fact
COVERAGE = {
    "asked without context": "the pair that is trained without context",
    "asked in context": "a pair that is trained with the passage as context",
    "not asked": "none: the fact is in passage and rewrite alone",
    "not retrieved": "the passage is not among those retrieved",
}
SINGLE_HOP = "single_hop"  # two-hop questions need more than one fact


def seed_folders(root: Path) -> dict[int, Path]:
    """The folder of each seed. Raises `InputError` if there is none."""
    folders = {int(f.name.removeprefix("seed=")): f for f in root.glob("seed=*")}
    if not folders:
        raise InputError(f"{relative(root)} has no folder seed=N; run configs/demo_effect.sh first")
    return dict(sorted(folders.items()))


def questions_of(data_type: str) -> pd.DataFrame:
    """The questions of a split with `identity`, by which results name them, as the index."""
    records = read_json(QUESTIONS, "the demo's questions")[data_type]
    frame = pd.DataFrame(records)
    frame["identity"] = [
        hash_json([number, record["question"], record["answer"]])
        for number, record in enumerate(records)
    ]
    return frame.set_index("identity")


def read_scores(folder: Path, trainings: dict[str, str]) -> dict[str, pd.Series]:
    """F1 by identity for every condition that is in the folder of one seed."""
    scores = {}
    for variant in dict.fromkeys(variant for variant, _, _ in CONDITIONS.values()):
        runs, problems = read_runs(folder / variant / "output", dataset="demo")
        for problem in problems:
            print(f"warning: {problem}", file=sys.stderr)
        found = {(run.setting[1], run.method): run.scores for run in runs}
        for name, (below, training, method) in CONDITIONS.items():
            key = (trainings[training], method)
            if below == variant and key in found:
                scores[name] = found[key].set_index("identity")["f1"]
    return scores


def coverage_of(folder: Path, questions: pd.DataFrame, data_type: str) -> pd.Series:
    """For each question, which key of `COVERAGE` the passage with its answer has."""
    records = read_json(folder / "data_aug/demo" / f"{data_type}.json", "the augmented file")
    kinds = {}
    for identity, record in zip(questions.index, records, strict=False):
        kinds[identity] = _coverage(record, questions.loc[identity, "golden_passages"][-1])
    return pd.Series(kinds)


def _coverage(record: dict, passage: str) -> str:
    entry = next((e for e in record["augment"] if e["passage"] == passage), None)
    if entry is None:
        return "not retrieved"
    pairs = next(value for name, value in entry.items() if name.endswith("_qa"))
    answers = [normalize(pair["answer"]) for pair in pairs]
    right = normalize(record["answer"])
    if right not in answers:
        return "not asked"
    # of three pairs the first two are in prompts with a context (encode.py)
    return "asked in context" if answers.index(right) < 2 else "asked without context"


# ------------------------------------------------------------------------------------------------
# Figures


def summary_of(
    scores: dict[str, dict[int, pd.Series]], questions: pd.DataFrame
) -> dict[str, dict[str, dict]]:
    """condition -> column ("all" or a question type) -> F1, its interval, p-values, seeds."""
    types = questions["type"]
    columns = {"all": types.notna(), **{kind: types == kind for kind in sorted(types.unique())}}
    means = {name: pd.DataFrame(of_seed).mean(axis=1) for name, of_seed in scores.items()}
    summary: dict[str, dict[str, dict]] = {}
    for name, mean in means.items():
        summary[name] = {}
        for column, chosen in columns.items():
            own = mean[chosen.reindex(mean.index)]
            entry = describe(own)
            entry["seeds"] = {
                str(seed): round(float(f1[own.index].mean()), 4)
                for seed, f1 in scores[name].items()
            }
            for method in REFERENCES:
                reference = reference_of(name, method)
                if reference in scores and reference != name:
                    seeds = [seed for seed in scores[name] if seed in scores[reference]]
                    other = pd.DataFrame(scores[reference])[seeds].mean(axis=1)
                    p = paired_test(own, other.reindex(own.index))
                    entry[f"p_{method}"] = round(p, 4)
            summary[name][column] = entry
    return summary


def reference_of(name: str, method: str) -> str:
    """The condition that `name` is tested against for `method`, "icl" or "prag"."""
    if not name.startswith(method):
        for passages in OTHER_PASSAGES:
            if passages in name:
                return f"{method}, {passages}"
    return method


def describe(values: pd.Series) -> dict:
    """Mean, 95% interval and number of values."""
    low, high = bootstrap_interval(values)
    return {
        "f1": round(float(values.mean()), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(values),
    }


def coverage_summary(
    prag: dict[int, pd.Series], coverage: dict[int, pd.Series], types: pd.Series
) -> dict[str, dict]:
    """F1 of prag by what the question-answer pairs cover: single-hop questions, all seeds.

    A question counts once for each kind that it has with one of the seeds.
    """
    prag = {seed: f1[types.reindex(f1.index) == SINGLE_HOP] for seed, f1 in prag.items()}
    result = {}
    for kind in COVERAGE:
        chosen = {seed: f1[coverage[seed].reindex(f1.index) == kind] for seed, f1 in prag.items()}
        mean = pd.DataFrame(chosen).mean(axis=1).dropna()
        if len(mean):
            result[kind] = describe(mean)
    return result


def names_in_wrong_answers(predictions: list[dict], types: pd.Series) -> dict[str, int]:
    """How many wrong answers to single-hop questions are words of the question's own name.

    Its name: the words of the question with a capital, the first one left out. "name" counts
    answers of such words alone, "part" those that hold one.
    """
    counts = {"wrong": 0, "name": 0, "part": 0}
    for row, kind in zip(predictions, types, strict=True):
        if kind != SINGLE_HOP or row["em"] == 1:
            continue
        asked = [word.strip("?.,").removesuffix("'s") for word in row["question"].split()[1:]]
        name = {word for word in asked if word[:1].isupper()}
        said = set(row["eval_predict"].split())
        counts["wrong"] += 1
        counts["name"] += bool(said) and said <= name
        counts["part"] += bool(said & name) and not said <= name
    return counts


def sweep_of(folder: Path) -> list[dict]:
    """F1 of the sweep's runs on dev: learning rate, epochs, method and interval."""
    rows = []
    for run in read_runs(folder / "output", dataset="demo")[0]:
        names = ("learning_rate", "num_train_epochs")
        settings = {name: run.config[name] for name in names}
        rows.append({"method": run.method, **settings, **describe(run.scores["f1"])})
    return rows


def table_of(summary: dict, coverage: dict) -> str:
    """The Markdown table of all conditions, and that of coverage."""
    columns = list(next(iter(summary.values())))
    counts = next(iter(summary.values()))
    head = [f"{column.replace('_', '-')} ({counts[column]['n']})" for column in columns]
    lines = [["condition", *head, "all, seed by seed"]]
    lines += [["---"] * len(lines[0])]
    for name, row in summary.items():
        cells = [cell(row[column]) for column in columns]
        method, _, rest = name.partition(",")
        each = " / ".join(f"{value:.3f}" for value in row["all"]["seeds"].values())
        lines.append([f"`{method}`" + (f",{rest}" if rest else ""), *cells, each])
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", "| the question's fact is in | single-hop questions | F1 of `prag` |"]
    text.append("| --- | --- | --- |")
    for kind, row in coverage.items():
        text.append(f"| {COVERAGE[kind]} | {row['n']} | {cell(row)} |")
    return "\n".join(text) + "\n"


def cell(entry: dict) -> str:
    """F1 with its interval, and the marks of the references that it differs from."""
    marks = [mark for name, mark in REFERENCES.items() if entry.get(f"p_{name}", 1) < 1 - LEVEL]
    interval = f"{entry['f1']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{interval} {''.join(marks)}".rstrip()
