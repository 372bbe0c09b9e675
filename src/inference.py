"""Stage 3: answer the questions, in one of four ways.

    python src/inference.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --sample 10 --learning_rate 2e-3 --num_train_epochs 4 \
        --max_new_tokens 12 --inference_method prag

    python src/inference.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa \
        --sample 300 --with_cot --max_new_tokens 128 --inference_method combine

* closed_book: the question alone
* icl: the passages in the prompt (plain retrieval-augmented generation)
* prag: the sum of the passages' adapters in the model (arXiv:2501.15915, section 3.3)
* combine: both

Writes `config.json`, `predict.json` and `result.txt` under `output/`. Started again after a stop,
it goes on where it was.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from utils.arguments import (
    adapters_of,
    add_data_flags,
    add_model_flags,
    add_training_flags,
    new_parser,
    positive_integer,
    shared_flags,
    training_settings,
)
from utils.augmented import read_sample
from utils.journal import Journal, refuse_difference
from utils.lora import LoraBank, load_adapter, merge, read_training
from utils.metrics import METRICS, extract_answer, mean_scores, score
from utils.models import (
    context_length,
    generate,
    load_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
    prompts_that_fit,
)
from utils.paths import (
    InputError,
    hash_json,
    passage_folder,
    read_json,
    relative,
    result_folder,
    run_stage,
    write_json,
    write_text,
)
from utils.prompting import PromptEncoder, load_prompts

METHODS = ("closed_book", "icl", "prag", "combine")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_model_flags(parser)
    add_data_flags(parser)
    add_training_flags(parser)
    answering = parser.add_argument_group("answering")
    answering.add_argument(
        "--inference_method", choices=METHODS, required=True, help="where the passages go"
    )
    answering.add_argument(
        "--max_new_tokens", type=positive_integer, default=20, help="tokens of an answer at most"
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size",
        type=positive_integer,
        help="questions answered side by side (not set: as many as fit)",
    )
    running.add_argument(
        "--overwrite", action="store_true", help="answer anew what is answered already"
    )
    return parser.parse_args(arguments)


def check_adapters(
    records: list[dict], adapters: Path, settings: dict, encoder: PromptEncoder, options
) -> str | None:
    """The fingerprint of the base that the passages' adapters were trained from.

    `encoder` is the one of the training prompts. Raises `InputError` unless every adapter stands,
    was made with these settings and from these texts, all from the same base.
    """
    bases = {}
    for did, record in enumerate(records):
        for entry in record["augment"]:
            folder = passage_folder(adapters, did, entry["pid"])
            if (made_with := read_training(folder)) is None:
                raise InputError(
                    f"there is no adapter in {relative(folder)}; "
                    f"run first: python src/encode.py {shared_flags(options)}"
                )
            bases.setdefault(made_with.get("base"), folder)
            prompts = encoder.passage_examples(entry["passage"], entry["rewrite"], entry["qa"])
            wanted = {**settings, "data": hash_json(prompts)}
            refuse_difference(
                f"the adapter {relative(folder)}",
                {name: made_with.get(name) for name in wanted},
                wanted,
                "give the flags it was made with, or run encode.py with --overwrite",
            )
    if len(bases) > 1:
        first, second = [relative(folder) for folder in bases.values()][:2]
        raise InputError(
            f"{first} and {second} were trained from different base adapters; "
            "run encode.py with --overwrite"
        )
    return next(iter(bases), None)


def assert_adapters_work(bank: LoraBank, prompt: list[int]) -> None:
    """Raise `InputError` where the loaded adapters leave the next token's logits as they are."""
    ids = torch.tensor([prompt], device=bank.model.device)
    loaded = {name: (layer.A, layer.B) for name, layer in bank.layers.items()}
    bank.set({name: (A[:1], B[:1]) for name, (A, B) in loaded.items()})
    with torch.inference_mode():
        with_adapter = bank.model(ids).logits[0, -1]
        bank.clear()
        without = bank.model(ids).logits[0, -1]
    bank.set(loaded)
    if torch.equal(with_adapter, without):
        raise InputError(
            "the adapters change nothing in the model's output; they were trained with a learning "
            "rate too small to matter or for another model; run encode.py with --overwrite"
        )


def answer_in_batches(
    records: list[dict],
    prompts: list[list[int]],
    batches: list[list[int]],
    model,
    tokenizer,
    options,
    bank: LoraBank | None,
    adapters: Path,
) -> Iterator[list[dict]]:
    """Yield each batch's predictions (rows of predict.json), in the batch's order."""
    checked = False
    for batch in batches:
        if bank:
            shapes = bank.shapes(options.lora_rank)
            own = [
                [
                    load_adapter(passage_folder(adapters, did, entry["pid"]), shapes)
                    for entry in records[did]["augment"]
                ]
                for did in batch
            ]
            bank.load([merge(some) if some else bank.no_adapter() for some in own])
            if not checked and own[0]:
                assert_adapters_work(bank, prompts[batch[0]])
                checked = True
        texts = generate(model, tokenizer, [prompts[i] for i in batch], options.max_new_tokens)
        predictions = []
        for did, text in zip(batch, texts, strict=True):
            record = records[did]
            prediction = extract_answer(text, options.with_cot)
            predictions.append(
                {
                    "test_id": record["test_id"],
                    "question": record["question"],
                    "answer": record["answer"],
                    "text": text,
                    "eval_predict": prediction,
                    **score(prediction, record["answer"]),
                }
            )
        yield predictions


def main() -> None:
    """Check, load, answer batch by batch, save."""
    options = parse_arguments()
    method = options.inference_method
    in_context, in_parameters = method in ("icl", "combine"), method in ("prag", "combine")

    # 1. Check everything that needs no model
    augment_model = options.augment_model or options.model_name
    prompt_set = load_prompts(options.prompts, options.dataset, options.with_cot)
    records = read_sample(options.dataset, options.data_type, augment_model, options.sample)
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    adapter_settings = training_settings(options, prompt_set)
    training = PromptEncoder(tokenizer, prompt_set, options.with_cot, options.max_length)
    settings = {
        **adapter_settings,
        "inference_method": method,
        "max_new_tokens": options.max_new_tokens,
        "dtype": str(pick_dtype(options.dtype, pick_device())).removeprefix("torch."),
        "batch_size": options.batch_size,
        "sample": options.sample,
    }
    leaves = {}
    for data_type, of_type in records.items():
        leaf = output_folder(options, data_type)
        config = {**settings, "data": hash_json(of_type)}
        if in_parameters:
            adapters = adapters_of(options, data_type)
            base = check_adapters(of_type, adapters, adapter_settings, training, options)
            config["base"] = base
        if options.overwrite:
            for name in (".predict.journal", "config.json", "predict.json", "result.txt"):
                (leaf / name).unlink(missing_ok=True)
        if (leaf / "result.txt").exists():  # a kill may have come just before its removal
            (leaf / ".predict.journal").unlink(missing_ok=True)
        if (leaf / "config.json").exists():
            refuse_difference(
                f"the result in {relative(leaf)}",
                read_json(leaf / "config.json", "the settings file"),
                config,
                "use the same settings, or --overwrite to answer anew",
            )
        leaves[data_type] = (leaf, config)
    waiting = [name for name, (leaf, _) in leaves.items() if not (leaf / "result.txt").exists()]

    if waiting:
        # 2. Load
        room = context_length(options.model_name, options.trust_remote_code)
        room -= options.max_new_tokens
        encoder = PromptEncoder(tokenizer, prompt_set, options.with_cot, room)
        model = load_model(options.model_name, options.dtype, tokenizer, options.trust_remote_code)
        bank = LoraBank(model, options.lora_rank, options.lora_alpha) if in_parameters else None

    for data_type in waiting:
        leaf, config = leaves[data_type]
        of_type = records[data_type]
        write_json(leaf / "config.json", config)

        # 3. Answer. The batches depend on the whole list, so a resumed run has the same ones
        prompts = [
            encoder.question(
                record["question"],
                [entry["passage"] for entry in record["augment"]] if in_context else [],
            )
            for record in of_type
        ]
        size = options.batch_size or prompts_that_fit(model, prompts, options.max_new_tokens)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        journal = Journal(leaf / ".predict.journal", config)
        rest = batches[len(journal.items) :]
        done = len(prompts) - sum(map(len, rest))
        bar = tqdm(total=len(prompts), initial=done, unit="question", desc=f"{method} {data_type}")
        for predictions in answer_in_batches(
            of_type, prompts, rest, model, tokenizer, options, bank, adapters_of(options, data_type)
        ):
            journal.add(predictions)
            bar.update(len(predictions))
        bar.close()

        # 4. Save, in the order of the questions
        by_index = dict(zip(order, sum(journal.items, []), strict=True))
        predictions = [by_index[i] for i in range(len(of_type))]
        write_json(leaf / "predict.json", predictions)
        write_text(leaf / "result.txt", result_text(predictions, config))
        journal.remove()
    if waiting and encoder.shortened:
        print(f"{encoder.shortened} prompts did not fit into the model: passages were shortened")

    for data_type, (leaf, _) in leaves.items():
        means = mean_scores(read_json(leaf / "predict.json", "the predictions"))
        shown = "  ".join(f"{metric} {means[metric]:.4f}" for metric in METRICS)
        print(
            f"{method} {data_type}: {shown}  ({len(records[data_type])} questions) {relative(leaf)}"
        )
    print("next: another --inference_method, or the table: python src/report.py")


def output_folder(options: argparse.Namespace, data_type: str) -> Path:
    """The result's folder under `output/`."""
    return result_folder(
        options.model_name,
        options.lora_rank,
        options.lora_alpha,
        options.dataset,
        options.learning_rate,
        options.num_train_epochs,
        options.with_cot,
        options.augment_model or options.model_name,
        options.inference_method,
        data_type,
    )


def result_text(predictions: list[dict], config: dict) -> str:
    """`result.txt`: one line per metric, a blank line, the run's settings."""
    means = mean_scores(predictions)
    lines = [f"{metric}\t{means[metric]:.4f}" for metric in METRICS]
    return "\n".join(lines) + "\n\n" + json.dumps(config, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    run_stage(main)
