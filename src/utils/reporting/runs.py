"""The results under `output/`.

Folder names are labels; what a run was made with is read from its `config.json`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from utils import layout
from utils.datasets import DATASETS
from utils.files import hash_json, read_json, read_object, relative
from utils.forms import read_records
from utils.journal import agree
from utils.metrics import METRICS, score
from utils.recipe import DEFAULTS, METHODS
from utils.reporting.verdicts import read_verdicts
from utils.running import InputError

COSTS = ("seconds", "prompt_tokens", "generated_tokens", "retrievals", "model_calls")
MOST_QUESTION_TYPES = 8  # more are remarks rather than types, and not shown
AGAIN = "answer these questions again (inference.py with --overwrite)"


@dataclass(eq=False)
class Run:
    """One leaf folder under `output/`."""

    folder: Path
    model: str
    dataset: str
    setting: tuple[str, str, str]  # the folders of rank, training and augmentation model
    method: str  # the method's folder: a method, perhaps with the names of its settings
    data_type: str
    config: dict
    # a row per question, sorted by `identity` (hash of id, text and answers); `type`, the metrics;
    # `judge` (1 right, else 0) and `unread` (1: no yes or no) if it was judged; `kl` if measured
    scores: pd.DataFrame
    costs: dict[str, float]  # the `COSTS` per question that were measured

    @property
    def base_method(self) -> str:
        """The `--inference_method`."""
        return self.config["inference_method"]

    @property
    def has_locality(self) -> bool:
        """Whether it answered other questions than its data set's."""
        return "locality" in self.config

    @property
    def column(self) -> tuple:
        """A sort key of data types: data sets and types as the paper has them, `total` last."""
        types = DATASETS[self.dataset].types if self.dataset in DATASETS else ()
        return (*_place(self.dataset, [*DATASETS]), *_place(self.data_type, [*types, "total"]))

    def value(self, name: str) -> Any:
        """The value of a setting; one that `config.json` does not hold has its default."""
        return self.config.get(name, DEFAULTS.get(name))

    def agrees(self, other: "Run", names: Iterable[str]) -> bool:
        """Whether two runs have the same values of these settings."""
        return all(agree(name, self.value(name), other.value(name)) for name in names)

    def is_default(self, names: Iterable[str]) -> bool:
        """Whether the run has the defaults of these settings."""
        return all(self.value(name) == DEFAULTS[name] for name in names)

    def of_type(self, question_type: str) -> pd.DataFrame:
        """The `scores` of the questions of one type, "" for all."""
        return self.scores[self.scores["type"] == question_type] if question_type else self.scores


def output_folder() -> Path:
    """The folder of all results."""
    return layout.ROOT_DIR / "output"


def read_runs(
    output: Path, model: str | None = None, dataset: str | None = None
) -> tuple[list[Run], list[str]]:
    """The runs under `output` in the order in which they are shown, and what was left out. `model`
    and `dataset` select. What is unfinished or damaged gives a sentence in the second list."""
    runs, left_out = [], []
    types_of = cache(_question_types)  # all methods share a file
    model, dataset = (layout.folder_name(name) if name else "*" for name in (model, dataset))
    files = output.glob(f"{model}/*/{dataset}/*/*/*/*/*.json")
    for folder in sorted({file.parent for file in files}):
        names = folder.relative_to(output).parts
        try:
            runs.append(_read_run(folder, names, types_of(names[2], names[6]), left_out))
        except InputError as error:
            left_out.append(f"{relative(folder)} is left out: {error}")
    runs.sort(key=lambda run: (_place(run.base_method, METHODS), run.method, run.column))
    return sorted(runs, key=lambda run: (run.column[:2], run.model, run.setting)), left_out


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """A sort key: known names in their order, then all others by the alphabet."""
    return (known.index(name) if name in known else len(known), name)


def _question_types(dataset: str, data_type: str) -> dict[str, str]:
    """Question -> its type, for your own data set whose augmented file has types."""
    path = layout.augmented_file(dataset, data_type)
    if dataset in DATASETS or not path.is_file():  # the published ones have a data type for each
        return {}
    records = [(record.get("question"), record.get("type")) for record in read_records(path)]
    types = {str(question): kind for question, kind in records if isinstance(kind, str) and kind}
    return types if 1 < len(set(types.values())) <= MOST_QUESTION_TYPES else {}


def _read_run(
    folder: Path, names: tuple[str, ...], types: dict[str, str], left_out: list[str]
) -> Run:
    """The run in a leaf; `names` are the seven folders to it. Why verdicts do not count is added to
    `left_out`."""
    model, rank, dataset, training, writer, method, data_type = names
    if not (folder / "predict.json").exists():
        raise InputError("it is unfinished; start its inference.py command again")
    config = read_object(folder / "config.json", "the settings file")
    if not f"{method}_".startswith(f"{config.get('inference_method')}_"):
        raise InputError(f"its config.json is not that of method {method}; {AGAIN}")
    try:
        predictions = read_json(folder / "predict.json", "the predictions")
        scores = _scores(predictions, types, _verdicts(folder, predictions, left_out))
        measured = config.get("measured")
        names = [name for name in COSTS if measured and name in measured]
        costs = {name: measured[name] / measured["questions"] for name in names}
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise InputError(f"its config.json or predict.json is damaged; {AGAIN}") from None
    setting = (rank, training, writer)
    return Run(folder, model, dataset, setting, method, data_type, config, scores, costs)


def _verdicts(folder: Path, predictions: list[dict], left_out: list[str]) -> list[bool | None]:
    """The verdicts of a leaf, [] without any that count."""
    try:
        return read_verdicts(folder, predictions)
    except InputError as error:
        left_out.append(f"the verdicts are left out: {error}")
        return []


def _scores(
    predictions: list[dict], types: dict[str, str], verdicts: list[bool | None]
) -> pd.DataFrame:
    """`Run.scores` from predict.json; em and F1 are computed again and compared."""
    rows = []
    for number, row in enumerate(predictions):
        right = score(row["eval_predict"], row["answer"])
        for metric in ("em", "f1"):
            if not abs(right[metric] - row[metric]) <= 1e-6:
                wrong = f"prediction {number} has {metric} {row[metric]:g}"
                raise InputError(f"{wrong} and not the {right[metric]:g} of its answer; {AGAIN}")
        identity = hash_json([row["test_id"], row["question"], row["answer"]])
        rows.append({"identity": identity, "type": types.get(row["question"])})
        rows[-1] |= {metric: float(row.get(metric, "nan")) for metric in METRICS}
        if verdicts:
            rows[-1] |= {"judge": float(verdicts[number] is True)}
            rows[-1] |= {"unread": float(verdicts[number] is None)}
        if "kl" in row:
            rows[-1]["kl"] = float(row["kl"])
    return pd.DataFrame(rows).sort_values("identity", ignore_index=True)
