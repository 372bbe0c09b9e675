"""What stands under `output/`, and what the paper has published for the same.

A run is one leaf folder: one model, data set, data type, setting and method. Folder names are
labels; what a run was made with is read from its `config.json`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from utils.files import hash_json, read_json, relative
from utils.flags import IN_PARAMETERS, METHODS
from utils.layout import augmented_file, folder_name
from utils.metrics import COMPARED, score
from utils.models import SHORT_NAMES
from utils.questions import TYPES, read_records
from utils.running import InputError

MEASURED = ("seconds", "questions", "prompt_tokens", "generated_tokens")
LEVELS = 7  # folders between output/ and a run's files
MOST_QUESTION_TYPES = 8  # more are no types but remarks, and not shown
PUBLISHED = Path(__file__).with_name("published.json")
# an absent setting has its default
ALL_PARTS = ("rewrite", "qa")
PLAIN_MERGE = {"merge_topk": None, "merge": "sum", "merge_scale": 1}
PAPER = {"lora_rank": 2, "lora_alpha": 32, "learning_rate": 3e-4, **PLAIN_MERGE}


@dataclass(eq=False)
class Run:
    """One leaf folder under `output/`.

    `scores` has a row per question: `identity` (its id, text and right answers), `type` (where
    known) and the metrics.
    """

    folder: Path
    model: str
    dataset: str
    setting: tuple[str, str, str]  # the folders of rank, training and augmentation model
    method: str  # the method's folder: a method, perhaps with the names of its settings
    data_type: str
    config: dict
    scores: pd.DataFrame

    @property
    def base_method(self) -> str:
        """The `--inference_method`."""
        return self.config["inference_method"]

    @property
    def cut(self) -> str:
        """How the answer is cut out of the text: runs scored in two ways are not compared."""
        return "none" if self.config.get("answer_cut") == "none" else ""

    @property
    def has_all_parts(self) -> bool:
        """Whether adapters are trained on the rewrites and on the question-answer pairs."""
        parts = self.config.get("augment_parts") or ALL_PARTS
        return set(parts.split(",") if isinstance(parts, str) else parts) == set(ALL_PARTS)

    @property
    def has_plain_adapters(self) -> bool:
        """Whether adapters start at random and are trained on all of the augmentation."""
        return self.has_all_parts and self.has({"init_adapter": "random"})

    def agrees(self, other: "Run", names: tuple[str, ...]) -> bool:
        """Whether two runs have the same values of these settings."""
        return all(self.config.get(name) == other.config.get(name) for name in names)

    def has(self, settings: dict) -> bool:
        """Whether the run has these settings, as far as its `config.json` names them."""
        return all(self.config.get(name) in (None, value) for name, value in settings.items())


# ------------------------------------------------------------------------------------------------
# Reading


def read_runs(
    output: Path, model: str | None = None, dataset: str | None = None
) -> tuple[list[Run], list[str]]:
    """The runs under `output` in the order in which they are shown, and what was left out.

    `model` and `dataset` are folder names that select. A leaf that is unfinished, damaged or not
    where the stages write is never counted: it gives a sentence in the second list.
    """
    runs, left_out = [], []
    files = [*output.glob("*/" * LEVELS + "*.json"), *output.rglob("predict.json")]
    for folder in sorted({file.parent for file in files}):
        names = folder.relative_to(output).parts
        if any(name.startswith(".") for name in names):
            continue  # a folder that is being written
        if (model and names[:1] != (model,)) or (dataset and names[2:3] != (dataset,)):
            continue
        try:
            runs.append(_read_run(folder, names))
        except InputError as error:
            left_out.append(f"{relative(folder)} is left out: {error}")
    return sorted(runs, key=_order), left_out


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """A sort key: known names in their order, then all others by the alphabet."""
    return (known.index(name) if name in known else len(known), name)


def column_place(dataset: str, data_type: str) -> tuple:
    """A sort key of data types: as the paper has them, `total` last."""
    types = (*TYPES.get(dataset, ()), "total")
    return (_place(dataset, list(TYPES)), _place(data_type, types))


def _order(run: Run) -> tuple:
    """A sort key: by data set, model, setting, method and data type, as the paper has them."""
    dataset, data_type = column_place(run.dataset, run.data_type)
    model = _place(published_name(run.model), list(_published()["f1"]))
    return (dataset, model, run.setting, _place(run.base_method, METHODS), run.method, data_type)


def _read_run(folder: Path, names: tuple[str, ...]) -> Run:
    """The run in `folder`. Raises `InputError` where it cannot be counted."""
    if len(names) != LEVELS:
        raise InputError(
            "results stand in {model}/rank=…/{dataset}/lr=…/aug_model=…/{method}/{data_type}; "
            "move it there or away"
        )
    again = "answer these questions anew (inference.py with --overwrite)"
    if not (folder / "predict.json").exists():
        raise InputError("it is unfinished; start its inference.py command again")
    if not (folder / "config.json").exists():
        raise InputError(f"it has no config.json, which says what made it; {again}")
    model, rank, dataset, training, augmentation, method, data_type = names
    config = read_json(folder / "config.json", "the settings file")
    said = config.get("inference_method") if isinstance(config, dict) else None
    if not isinstance(said, str) or not f"{method}_".startswith(f"{said}_"):
        raise InputError(f"its config.json is not that of method {method}; {again}")
    measured = config.get("measured", dict.fromkeys(MEASURED, 0))
    if not isinstance(measured, dict) or not all(_is_score(measured.get(n)) for n in MEASURED):
        raise InputError(
            f'"measured" in its config.json does not hold {", ".join(MEASURED)}; {again}'
        )
    predictions = read_json(folder / "predict.json", "the predictions")
    if problem := _problem(predictions):
        raise InputError(f"{problem} in its predict.json; {again}")
    scores = _scores(predictions, question_types(dataset, data_type))
    setting = (rank, training, augmentation)
    return Run(folder, model, dataset, setting, method, data_type, config, scores)


def _is_score(value: Any) -> bool:
    """Whether `value` is a finite number from 0 on."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _problem(predictions: Any) -> str | None:
    """What is wrong with the content of a predict.json, in words."""
    if not isinstance(predictions, list) or not predictions:
        return "there is no list of predictions"
    seen = set()
    for index, row in enumerate(predictions):
        if not isinstance(row, dict) or not {"test_id", "question", "answer"} <= row.keys():
            return f'prediction {index} has no "test_id", "question" and "answer"'
        for metric in COMPARED:
            if not _is_score(row.get(metric)) or row[metric] > 1:
                return f"prediction {index} has no {metric} from 0 to 1"
        if wrong := _wrong_score(row):
            return f"prediction {index} has {wrong}, so that it was edited or scored otherwise"
        if (identity := json.dumps(row["test_id"])) in seen:
            return f"test_id {identity} occurs twice"
        seen.add(identity)
    return None


def _wrong_score(row: dict) -> str | None:
    """The first metric that is not what the row's own answer gives, None where all are."""
    if not isinstance(row.get("eval_predict"), str) or not isinstance(row["answer"], str | list):
        return None
    right = score(row["eval_predict"], row["answer"])
    for metric in ("em", "f1"):
        if abs(right[metric] - row[metric]) > 1e-6:
            return f"{metric} {row[metric]:g} where its answer gives {right[metric]:g}"
    return None


def _scores(predictions: list[dict], types: dict[str, str]) -> pd.DataFrame:
    """The frame of `Run.scores`, in an order that depends on the questions alone."""
    first = predictions[0]
    more = [name for name in first if name not in ("test_id", *COMPARED) and _is_score(first[name])]
    rows = [
        {
            "identity": hash_json([row["test_id"], row["question"], row["answer"]]),
            "type": types.get(str(row["question"])),
            **{metric: row[metric] for metric in COMPARED},
            **{name: row[name] if _is_score(row.get(name)) else None for name in more},
        }
        for row in predictions
    ]
    return pd.DataFrame(rows).sort_values("identity", ignore_index=True)


def question_types(dataset: str, data_type: str) -> dict[str, str]:
    """The type of each question of a data set of one's own, where its augmented file has types.

    The published data sets are evaluated type by type, each a data type of its own.
    """
    path = augmented_file(dataset, data_type)
    if dataset in TYPES or not path.is_file():
        return {}
    types = {
        str(record.get("question")): record["type"]
        for record in read_records(path)
        if isinstance(record.get("type"), str)
    }
    return types if 1 < len(set(types.values())) <= MOST_QUESTION_TYPES else {}


# ------------------------------------------------------------------------------------------------
# The paper's figures


@cache
def _published() -> dict:
    return read_json(PUBLISHED, "the paper's results")


def published_name(model: str) -> str:
    """The short name that the paper's results have for the folder name `model`, else `model`."""
    for short, hub_id in read_json(SHORT_NAMES, "the list of models").items():
        if model.lower() in (short.lower(), folder_name(hub_id).lower()):
            return short
    return model


def published_f1(run: Run) -> float | None:
    """The paper's F1 for this model, data set, data type and method.

    None where it has none, or where the run departs from the paper: in the settings of adapters
    and merging, in what they were trained on, or in the scoring.
    """
    figures = "f1"
    if run.base_method in IN_PARAMETERS:
        if not run.has(PAPER | {"augment_model": run.model}):
            return None
        if not run.has_plain_adapters:
            figures = "f1_warmup"
            if run.config.get("init_adapter") != "warmup" or not run.has_all_parts:
                return None
    if run.cut:
        return None
    of_model = _published()[figures].get(published_name(run.model), {})
    return of_model.get(run.base_method, {}).get(f"{run.dataset}/{run.data_type}")


def published_seconds(model: str, dataset: str, method: str) -> float | None:
    """The paper's seconds per question (A100), for the one model that it gives them for."""
    figures = _published()["seconds_per_question"]
    if figures["model"] != published_name(model):
        return None
    return figures.get(dataset, {}).get(method)


def published_settings() -> dict:
    """The paper's `source`, `setting` and number of `questions` of a data type."""
    return {name: _published()[name] for name in ("source", "setting", "questions")}


def setting_labels(runs: list[Run]) -> dict[tuple[str, str, tuple[str, str, str]], str]:
    """What to call each (model, data set, setting): those of its folders that differ, else ""."""
    labels = {}
    for run in runs:
        settings = [r.setting for r in runs if (r.model, r.dataset) == (run.model, run.dataset)]
        differs = [len(set(names)) > 1 for names in zip(*settings, strict=True)]
        shown = [name for name, other in zip(run.setting, differs, strict=True) if other]
        labels[run.model, run.dataset, run.setting] = ", ".join(shown)
    return labels
