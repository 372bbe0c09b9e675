"""Which results can be compared, their means, and the tests between them.

The results of a group share data set, model and the settings that every answer depends on; of a
data type they answered the same questions from the same passages. Tests run within a group.
"""

from itertools import groupby

import pandas as pd

from utils.recipe import IN_PARAMETERS, Recipe
from utils.reporting.published import published_f1
from utils.reporting.runs import COSTS, Run
from utils.reporting.statistics import bootstrap_interval, cohens_kappa, paired_test

REFERENCES = {"icl": "†", "prag": "‡"}  # every other method is tested against these
# what every answer depends on; a new setting of answers is among them
ANSWERS = [n for n in Recipe().settings("answer") if n not in ("inference_method", "batch_size")]
CONDITIONS = ("model", "dtype", "prompts", "with_cot", *ANSWERS)
CONTROLS = tuple(Recipe().settings("control"))
MERGING = (*Recipe().settings("merging"), *CONTROLS)  # what a plain result leaves as it is
# how much an adapter is trained, and on whose texts
TRAINING = ("augment_model", "lora_rank", "lora_alpha", "learning_rate", "num_train_epochs")
TRAINING += ("per_device_train_batch_size", "max_length", "seed")
# what else makes an adapter (start, parts, objective, source): a plain one has the defaults
KIND = tuple(n for n in Recipe().settings("adapter") if n not in (*TRAINING, *CONDITIONS))


def groups_of(runs: list[Run]) -> list[list[Run]]:
    """The groups of `runs`, which have one data set and model, the largest first."""
    groups = []
    # what reads no passages fits several groups: it comes last, so that it goes to the largest
    for run in sorted(runs, key=lambda run: run.base_method == "closed_book"):
        fitting = [group for group in groups if all(_comparable(run, other) for other in group)]
        if fitting:
            fitting[0].append(run)
        else:
            groups.append([run])
        groups.sort(key=len, reverse=True)
    return [sorted(group, key=runs.index) for group in groups]


def _comparable(run: Run, other: Run) -> bool:
    """Whether two runs of one data set and model can be in one group."""
    same_settings = run.agrees(other, CONDITIONS)
    if run.data_type != other.data_type or not same_settings:
        return same_settings
    # the hash "data" is of the passages and of what was written about them
    alike = run.agrees(other, ["data"]) or "closed_book" in (run.base_method, other.base_method)
    return alike and run.scores["identity"].equals(other.scores["identity"])


def _difference(run: Run, first: Run) -> str:
    """The sentence that says in what the group of `run` differs from that of `first`."""
    names = [name for name in CONDITIONS if not run.agrees(first, [name])]
    named = [f"{name} {run.value(name)} (there {first.value(name)})" for name in names]
    what = ", ".join(named) or "the questions, the passages or what was written about them"
    return f"Not compared with the first table of this data set and model; differs in: {what}."


def reference_of(run: Run, method: str, runs: list[Run]) -> Run | None:
    """The run of `method` that `run` is tested against; `runs` are its group's of its data type.

    It merges plainly, without a control. Its adapters are made as those of `run`; as `icl` uses
    none, any will do. A `prag` whose adapters are of another kind is tested against the plain one
    otherwise like it.
    """
    plain = [o for o in runs if o.base_method == method and o.is_default(MERGING) and o is not run]
    own = [o for o in plain if o.setting == run.setting]
    if method == "icl":
        same = run.base_method == "icl" and run.is_default(CONTROLS)
        fitting = [] if same else own + plain
    elif run.base_method not in IN_PARAMETERS:
        fitting = own
    elif run.base_method == method and run.is_default(MERGING):
        fitting = [o for o in plain if o.is_default(KIND) and o.agrees(run, TRAINING)]
    else:
        fitting = [o for o in own if o.agrees(run, (*TRAINING, *KIND, "base"))]
    return next(iter(fitting), None)


def figures_of(runs: list[Run], samples: int, seed: int) -> pd.DataFrame:
    """One row for each run, and one for each question type of a run that knows them.

    Means of all metrics, the interval of F1, of verdicts also their agreement with EM and answer
    presence (Cohen's kappa), the p-values of its `paired_test` (missing without a
    counterpart), the paper's F1, the run's `group` and what it `differs` in, and `column`, a sort
    key of data type and question type.
    """
    rows = []
    for title, same_model in groupby(runs, key=lambda run: f"{run.dataset}, {run.model}"):
        of_model = list(same_model)
        groups = groups_of(of_model)
        for number, group in enumerate(groups, start=1):
            shared = {"group": number, "title": title, "differs": ""}
            if number > 1:
                differs = _difference(group[0], groups[0][0])
                shared |= {"title": f"{title}, group {number}", "differs": differs}
            for run in group:
                places = zip(run.setting, *(other.setting for other in of_model), strict=True)
                shared["settings"] = ", ".join(own for own, *all_ in places if set(all_) != {own})
                types = ["", *sorted(run.scores["type"].dropna().unique())]
                rows += [shared | _row(run, one, group, samples, seed) for one in types]
    return pd.DataFrame(rows)


def _row(run: Run, question_type: str, group: list[Run], samples: int, seed: int) -> dict:
    """The figures of one run for the questions of one type, "" for all."""
    scores = run.of_type(question_type)
    row = {
        **{name: getattr(run, name) for name in ("dataset", "data_type", "model", "method")},
        "question_type": question_type,
        "n": len(scores),
        **scores.drop(columns=["identity", "type"]).mean().to_dict(),
        "published_f1": None if question_type else published_f1(run),
        "run": run,
        "label": run.data_type + (f": {question_type}" if question_type else ""),
        "column": (*run.column, question_type),
    }
    row["f1_low"], row["f1_high"] = bootstrap_interval(scores["f1"], samples, seed)
    if "judge" in scores:
        verdicts = scores["judge"]
        row["judge_low"], row["judge_high"] = bootstrap_interval(verdicts, samples, seed)
        for metric in ("em", "answer_presence"):
            row[f"kappa_{metric}"] = cohens_kappa(verdicts, scores[metric])
    same, nan = [other for other in group if other.data_type == run.data_type], float("nan")
    for method in REFERENCES:
        row[f"p_{method}"] = nan
        if other := reference_of(run, method, same):
            others = other.of_type(question_type)
            row[f"p_{method}"] = paired_test(scores["f1"], others["f1"], samples, seed)
    costs = {} if question_type else run.costs
    return row | {f"{name}_per_question": costs.get(name, nan) for name in COSTS}
