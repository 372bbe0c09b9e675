"""The paper's figures and those of others (`published.json`)."""

from functools import cache
from pathlib import Path

from utils.augmentation.records import answers_rules
from utils.files import read_json
from utils.recipe import DEFAULTS, IN_PARAMETERS, Recipe
from utils.reporting.runs import Run

# may differ from the paper's settings, which are the defaults
NOT_ASKED = {"init_adapter", "num_train_epochs", "per_device_train_batch_size", "max_length"}
NOT_ASKED |= {"seed", "with_cot"}
PAPER = Recipe().settings("adapter", "merging").keys() - NOT_ASKED


@cache
def published() -> dict:
    """All of `published.json`: the paper's figures with their `source` and number of `questions` of
    a data type, and the `reports` of others, each with its own source."""
    return read_json(Path(__file__).with_name("published.json"), "the paper's results")


@cache
def short_name(model: str) -> str:
    """The short name of the model whose folders are named `model`; `model` if it has none."""
    models = Path(__file__).parents[3] / "configs/models.json"
    for short, hub_id in read_json(models, "the list of models").items():
        if model.lower() in (short.lower(), Path(hub_id).name.lower()):
            return short
    return model


def published_f1(run: Run) -> float | None:
    """The paper's F1 for this model, data set, data type and method. None if it has none, or if the
    run departs from it in scoring, right answers, adapters, their texts or merging."""
    table, like_paper = "f1", run.is_default(["answer_cut", *Recipe().settings("control")])
    like_paper &= not run.has_locality
    like_paper &= set(answers_rules(run.dataset, run.data_type).values()) <= {DEFAULTS["answers"]}
    if run.base_method in IN_PARAMETERS:
        table = {"random": "f1", "warmup": "f1_warmup"}.get(run.value("init_adapter"), "")
        like_paper &= run.is_default(PAPER) and run.value("augment_model") in (None, run.model)
    of_model = published().get(table, {}).get(short_name(run.model), {}) if like_paper else {}
    return of_model.get(run.base_method, {}).get(f"{run.dataset}/{run.data_type}")
