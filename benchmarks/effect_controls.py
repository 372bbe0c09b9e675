r"""Controls of the demo that no stage makes: no passage with the answer, no training.

    python benchmarks/effect_controls.py --control without_gold --from_root effect/seed=0 \
        --model_name data/demo/demo-model --dataset demo --data_type test
    python benchmarks/effect_controls.py --control untrained --learning_rate 4e-3 \
        --model_name data/demo/demo-model --prompts demo --dataset demo --data_type test

`without_gold` writes an augmented file without the passages that hold the answers, and links the
adapters of the others, as they are; `inference.py` then runs on it under the environment variable
PRAG_ROOT. `untrained` answers with the base adapters that every passage starts from, once per
passage: its B is zero, so the answers must be those of closed_book.
All write below PRAG_ROOT, as the stages do.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils import layout
from utils.arguments import new_parser
from utils.files import read_json, relative, write_json
from utils.layout import augmented_file, experiment_folder
from utils.recipe import Recipe, add_flags, parse_recipe
from utils.running import InputError, run_stage


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line: the control, and the flags of `encode.py`."""
    parser = new_parser(__doc__)
    add, controls = parser.add_argument, ["without_gold", "untrained"]
    add("--control", choices=controls, required=True, help="what to make")
    add("--from_root", type=Path, help="PRAG_ROOT of the plain run (only for without_gold)")
    add_flags(parser, "model", "data", "adapter")
    parser.set_defaults(inference_method="prag", max_new_tokens=12)
    return parse_recipe(parser, arguments)


def without_gold(records: list[dict]) -> list[dict]:
    """The records without the passages that support their answers."""
    left = []
    for record in records:
        kept = [e for e in record["augment"] if e["passage"] not in record["golden_passages"]]
        left.append({**record, "passages": [e["passage"] for e in kept], "augment": kept})
    return left


def answer_untrained(recipe: Recipe) -> None:
    """Answer all questions with three base adapters each, and save as a result of `prag`."""
    # torch takes seconds to import: not before the flags are known to be good
    from utils.answering import prediction_of
    from utils.experiment import Experiment
    from utils.generation import generate
    from utils.lora.merges import weighted
    from utils.store.folders import load_adapter

    experiment = Experiment(recipe)
    records = experiment.records[recipe.data_type]
    model = experiment.load_model()
    bank = experiment.bank(model)
    base = load_adapter(experiment.base_folder, bank.shapes(bank.rank))
    predictions = []
    for start in range(0, len(records), 64):
        batch = records[start : start + 64]
        counts = [max(1, len(record["augment"])) for record in batch]
        bank.load([weighted([base] * count, [1.0] * count) for count in counts])
        prompts = [experiment.encoder.question(record["question"], []) for record in batch]
        texts = generate(model, experiment.tokenizer, prompts, recipe.max_new_tokens)
        for record, text in zip(batch, texts, strict=True):
            predictions.append(prediction_of(record, text, recipe))
    leaf = experiment_folder("output", recipe) / "prag_untrained" / recipe.data_type
    write_json(leaf / "config.json", {"inference_method": "prag"})
    write_json(leaf / "predict.json", predictions)
    print(f"{len(predictions)} answers with untrained adapters in {relative(leaf)}")


def main() -> None:
    """Make one control."""
    options, recipe = parse_arguments()
    if options.control == "untrained":
        answer_untrained(recipe)
        return
    if options.from_root is None:
        raise InputError("this control needs --from_root, the PRAG_ROOT of the plain run")
    target = augmented_file(recipe.dataset, recipe.data_type)
    source = options.from_root / target.relative_to(layout.ROOT_DIR)
    records = read_json(source, "the augmented file of the plain run")
    adapters = layout.ROOT_DIR / "offline"
    if not adapters.is_symlink():
        adapters.symlink_to((options.from_root / "offline").resolve())
    write_json(target, without_gold(records))
    print(f"{len(records)} questions, control {options.control}, in {relative(target)}")


if __name__ == "__main__":
    run_stage(main)
