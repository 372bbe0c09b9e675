"""Two controls of the demo that no stage makes: adapters of other passages, and untrained ones.

    python benchmarks/effect_controls.py --control others --from_root effect/seed=0 --data_type test
    python benchmarks/effect_controls.py --control untrained --from_root effect/seed=0 \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1

`others` writes an augmented file in which every question has the passages, rewrites and pairs of
another question that shares no passage with it; the stages then run on it as on any other, under
the environment variable PRAG_ROOT. `untrained` answers with the base adapters that every
passage starts from, once per passage: its B is zero, so the answers must be those of closed_book.
Both write below PRAG_ROOT, where the stages write.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from utils.arguments import new_parser, positive_integer, positive_number
from utils.files import read_json, relative, write_json
from utils.flags import results_of
from utils.layout import augmented_file, rank_folder
from utils.lora.bank import LoraBank, merge
from utils.metrics import extract_answer, score
from utils.models import generate, load_model, load_tokenizer
from utils.prompting import PromptEncoder, load_prompts
from utils.running import InputError, run_stage
from utils.store.folders import load_adapter

RANK, ALPHA = 2, 32  # of the whole demo


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--control", choices=["others", "untrained"], required=True, help="what to make"
    )
    parser.add_argument("--from_root", type=Path, help="others only: PRAG_ROOT of the plain run")
    parser.add_argument("--model_name", default="data/demo/demo-model", help="model folder")
    parser.add_argument("--data_type", default="test", help="split of the demo's questions")
    parser.add_argument(
        "--learning_rate", type=positive_number, default=3e-4, help="names a folder"
    )
    parser.add_argument(
        "--num_train_epochs", type=positive_integer, default=1, help="names a folder"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of who gets whose passages")
    parser.set_defaults(
        dataset="demo",
        lora_rank=RANK,
        lora_alpha=ALPHA,
        with_cot=False,
        init_adapter="random",
        augment_parts=("rewrite", "qa"),
        augment_model=None,
    )
    return parser.parse_args()


def with_passages_of_others(records: list[dict], seed: int) -> list[dict]:
    """The records, each with the passages and augmentation of another that shares none with it.

    Raises `InputError` where no such exchange is found.
    """
    rng = random.Random(seed)
    own = [{entry["passage"] for entry in record["augment"]} for record in records]
    givers = list(range(len(records)))
    rng.shuffle(givers)
    for _ in range(100):
        clashes = [i for i, giver in enumerate(givers) if own[i] & own[giver]]
        if not clashes:
            return [
                {**record, **{name: records[giver][name] for name in ("passages", "augment")}}
                for record, giver in zip(records, givers, strict=True)
            ]
        for i in clashes:
            j = rng.randrange(len(givers))
            givers[i], givers[j] = givers[j], givers[i]
    raise InputError(
        f"no exchange of passages among {len(records)} questions leaves each without its own; "
        "take more questions"
    )


def answer_untrained(options: argparse.Namespace) -> None:
    """Answer all questions with three base adapters each, and save as a result of `prag`."""
    records = read_json(augmented_file("demo", options.data_type), "the augmented file")
    tokenizer = load_tokenizer(options.model_name)
    model = load_model(options.model_name, "auto", tokenizer)
    encoder = PromptEncoder(tokenizer, load_prompts("demo", "demo", False), False, 800)
    bank = LoraBank(model, RANK, ALPHA)
    folder = rank_folder(options.model_name, RANK, ALPHA)
    base = load_adapter(folder / "base_weight", bank.shapes(RANK))
    predictions = []
    for start in range(0, len(records), 64):
        batch = records[start : start + 64]
        bank.load([merge([base] * max(1, len(record["augment"]))) for record in batch])
        prompts = [encoder.question(record["question"], []) for record in batch]
        for record, text in zip(batch, generate(model, tokenizer, prompts, 12), strict=True):
            prediction = extract_answer(text, with_cot=False)
            row = {name: record[name] for name in ("test_id", "question", "answer")}
            row |= {"text": text, "eval_predict": prediction}
            predictions.append(row | score(prediction, record["answer"]))
    leaf = results_of(options, "prag_untrained", options.data_type)
    write_json(leaf / "config.json", {"inference_method": "prag"})
    write_json(leaf / "predict.json", predictions)
    print(f"{len(predictions)} answers with untrained adapters in {relative(leaf)}")


def main() -> None:
    """Make one control."""
    options = parse_arguments()
    if options.control == "untrained":
        answer_untrained(options)
        return
    if options.from_root is None:
        raise InputError("--control others needs --from_root, the PRAG_ROOT of the plain run")
    target = augmented_file("demo", options.data_type)
    source = options.from_root / "data_aug" / "demo" / target.name
    records = read_json(source, "the augmented file of the plain run")
    write_json(target, with_passages_of_others(records, options.seed))
    print(f"{len(records)} questions with others' passages in {relative(target)}")


if __name__ == "__main__":
    run_stage(main)
