r"""Stage 3: answer the questions, in one of five ways.

    python src/inference.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --sample 10 --learning_rate 4e-3 --num_train_epochs 1 \
        --max_new_tokens 12 --inference_method prag

    python src/inference.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa \
        --sample 300 --with_cot --max_new_tokens 128 --inference_method combine

* closed_book: the question alone
* icl: the passages in the prompt (plain retrieval-augmented generation)
* da_icl: the passages with their rewrites and question-answer pairs in the prompt (DA-RAG)
* prag: the sum of the passages' adapters in the model (arXiv:2501.15915, section 3.3)
* combine: prag and icl together

Writes `config.json`, `predict.json` and `result.txt` under `output/`. Started again after a stop,
it goes on where it was.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from utils.arguments import new_parser, positive_integer
from utils.augmentation.records import fewer_than_asked, read_sample
from utils.files import (
    hash_json,
    read_json,
    read_object,
    relative,
    write_json,
    write_text,
)
from utils.flags import (
    IN_PARAMETERS,
    METHODS,
    adapters_of,
    add_data_flags,
    add_merging_flags,
    add_model_flags,
    add_training_flags,
    check_merging,
    init_folder,
    model_of,
    results_of,
    training_settings,
)
from utils.journal import Journal, refuse_difference, remove_journal
from utils.lora.bank import LoraBank
from utils.lora.memory import in_halves, prompts_that_fit
from utils.metrics import METRICS, answer_presence, extract_answer, mean_scores, score
from utils.models import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    context_length,
    dtype_name,
    generate,
    load_tokenizer,
)
from utils.processes import Processes, add_shard_flag, start_processes
from utils.prompting import PromptEncoder, load_prompts
from utils.provenance import PROVENANCE, provenance
from utils.running import InputError, run_stage
from utils.store.folders import check_init_adapter
from utils.store.merging import Merger, check_adapters
from utils.warmup import refuse_trained_questions

IN_CONTEXT = ("icl", "da_icl", "combine")
JOURNAL = ".predict.journal"


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
    answering.add_argument(
        "--answer_cut",
        choices=["mark", "none"],
        default="mark",
        help="where the scored answer ends: at the first comma or full stop, or with its line",
    )
    add_merging_flags(parser, "merging (prag and combine)")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size",
        type=positive_integer,
        help="questions answered side by side (not set: as many as fit)",
    )
    add_shard_flag(running)
    running.add_argument(
        "--overwrite", action="store_true", help="answer anew what is answered already"
    )
    options = parser.parse_args(arguments)
    if options.overwrite and options.shard:
        parser.error(
            "--overwrite would remove what the other jobs of the array have answered; delete the "
            "result's folder before they start, and leave it out"
        )
    if options.inference_method not in IN_PARAMETERS and merging_label(options):
        parser.error(
            f"--inference_method {options.inference_method} merges no adapters; leave out "
            "--merge_topk, --merge and --merge_scale, or use prag or combine"
        )
    check_merging(parser, options)
    return options


def merging_label(options: argparse.Namespace) -> str:
    """What the flags of the group "merging" append to a result's folder: "" for their defaults."""
    label = f"_topk={options.merge_topk}" if options.merge_topk else ""
    label += f"_{options.merge}" if options.merge != "sum" else ""
    return label + (f"_scale={options.merge_scale:g}" if options.merge_scale != 1 else "")


def output_folder(options: argparse.Namespace, data_type: str) -> Path:
    """The result's folder under `output/`."""
    method = options.inference_method + merging_label(options)
    method += "_cut=none" if options.answer_cut == "none" else ""
    return results_of(options, method, data_type)


def context_of(record: dict, method: str, encoder: PromptEncoder) -> list[str]:
    """The passages that stand in the prompt of `record`'s question."""
    if method not in IN_CONTEXT:
        return []
    if method == "da_icl":
        return [
            encoder.prompts.augmented_passage(entry["passage"], entry["rewrite"], entry["qa"])
            for entry in record["augment"]
        ]
    return [entry["passage"] for entry in record["augment"]]


def prediction_of(record: dict, text: str, options: argparse.Namespace) -> dict:
    """A row of predict.json: the generated `text`, the answer in it, and its scores."""
    prediction = extract_answer(text, options.with_cot, options.answer_cut)
    return {
        "test_id": record["test_id"],
        "question": record["question"],
        "answer": record["answer"],
        "text": text,
        "eval_predict": prediction,
        **score(prediction, record["answer"]),
        "answer_presence": answer_presence(text, record["answer"]),
    }


def check_result(
    leaf: Path, config: dict, options: argparse.Namespace, processes: Processes
) -> None:
    """Refuse a result at `leaf` that was made with other settings; `--overwrite` removes it.

    Raises `InputError` where it was made with others.
    """
    if options.overwrite and processes.is_main:
        remove_journal(leaf / JOURNAL)
        for name in ("result.txt", "predict.json", "config.json"):
            (leaf / name).unlink(missing_ok=True)
    processes.wait()
    if (leaf / "result.txt").exists() and processes.is_main:  # killed just before its removal
        remove_journal(leaf / JOURNAL)
    if (leaf / "config.json").exists():
        made_with = read_object(leaf / "config.json", "the settings file")
        refuse_difference(
            f"the result in {relative(leaf)}",
            {name: made_with[name] for name in made_with.keys() - {PROVENANCE, "measured"}},
            config,
            "use the same settings, or --overwrite to answer anew",
        )


def answer_batches(
    batches: list[list[int]],
    records: list[dict],
    prompts: list[list[int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    merger: Merger | None,
    options: argparse.Namespace,
) -> Iterator[dict]:
    """Answer batch after batch of questions (indices of `records`) and yield an item for each.

    An item has the batch's "questions", their "predictions" in this order, and its "seconds".
    """
    mark = time.perf_counter()
    prepared = merger.ahead(batches, records) if merger else ((b, None) for b in batches)
    for batch, merged in prepared:
        asked = [prompts[did] for did in batch]
        first = asked[0] if records[batch[0]]["augment"] else None

        def answer(rows: list[int], asked=asked, merged=merged, first=first) -> list[str]:
            if merger:
                merger.use(merged, rows, first)
            return generate(model, tokenizer, [asked[i] for i in rows], options.max_new_tokens)

        remedy = "use a smaller --max_new_tokens, or fewer passages"
        texts = in_halves(answer, list(range(len(batch))), "questions", remedy)
        predictions = [
            prediction_of(records[did], text, options)
            for did, text in zip(batch, texts, strict=True)
        ]
        before, mark = mark, time.perf_counter()
        yield {"seconds": mark - before, "questions": batch, "predictions": predictions}


def main() -> None:
    """Check, load, answer batch by batch, save."""
    options = parse_arguments()
    processes = start_processes(options.shard, options.device_map)
    method = options.inference_method

    # 1. Check everything that needs no model
    augment_model = options.augment_model or options.model_name
    prompt_set = load_prompts(options.prompts, options.dataset, options.with_cot)
    records = read_sample(options.dataset, options.data_type, augment_model, options.sample)
    if short := fewer_than_asked(records, options.sample):
        processes.say(short)
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    adapter_settings = training_settings(options, prompt_set)
    training = PromptEncoder(tokenizer, prompt_set, options.with_cot, options.max_length)
    settings = {
        **adapter_settings,
        "inference_method": method,
        "merge": options.merge,
        "merge_topk": options.merge_topk,
        "merge_scale": options.merge_scale,
        "answer_cut": options.answer_cut,
        "max_new_tokens": options.max_new_tokens,
        "dtype": dtype_name(options.dtype),
        "batch_size": options.batch_size,
        "sample": options.sample,
    }
    longest = context_length(options.model_name, options.trust_remote_code)
    room = longest - options.max_new_tokens
    if room < 1:
        raise InputError(
            f"--max_new_tokens {options.max_new_tokens} leaves no room for a question in the "
            f"{longest} tokens that the model takes; use fewer"
        )
    most = max(len(record["augment"]) for of_type in records.values() for record in of_type)
    if (options.merge_topk or 0) > most:
        raise InputError(
            f"--merge_topk {options.merge_topk} is more than the {most} passages that a question "
            "has; leave it out to merge all of them"
        )
    start = init_folder(options)
    if options.merge == "base_once":
        check_init_adapter(start, options.lora_rank, options.lora_alpha)
    leaves = {}
    for data_type, of_type in records.items():
        if start and method in IN_PARAMETERS:
            refuse_trained_questions(start, [record["question"] for record in of_type])
        leaf = output_folder(options, data_type)
        config = {**settings, "data": hash_json(of_type)}
        if method in IN_PARAMETERS:
            adapters = adapters_of(options, data_type)
            config["base"] = check_adapters(of_type, adapters, adapter_settings, training, options)
        check_result(leaf, config, options, processes)
        leaves[data_type] = (leaf, config)
    waiting = [name for name, (leaf, _) in leaves.items() if not (leaf / "result.txt").exists()]
    processes.wait()  # so that all have seen the same results stand

    encoder = PromptEncoder(tokenizer, prompt_set, options.with_cot, room)
    model = bank = None
    for data_type in waiting:
        leaf, config = leaves[data_type]
        of_type = records[data_type]
        prompts = [
            encoder.question(record["question"], context_of(record, method, encoder))
            for record in of_type
        ]
        if (processes.is_main or processes.is_shard) and not (leaf / "config.json").exists():
            write_json(leaf / "config.json", {**config, PROVENANCE: provenance()})
        with Journal(leaf / JOURNAL, config, processes.index, processes.count > 1) as journal:
            done = {did for item in journal.items for did in item["questions"]}
            done = set(processes.agree(sorted(done)))

            # 2. Load, unless the parts of an array's jobs need only be put together
            if model is None and len(done) < len(prompts):
                model = model_of(options, tokenizer)
                if method in IN_PARAMETERS:
                    bank = LoraBank(model, options.lora_rank, options.lora_alpha)
            merger = None
            if bank:
                merger = Merger(bank, options, adapters_of(options, data_type), config["base"])

            # 3. Answer. The batches depend on the whole list, so a resumed run has the same ones
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            size = options.batch_size or (
                prompts_that_fit(model, prompts, options.max_new_tokens) if model else len(order)
            )
            size = processes.agree(size)
            batches = processes.share([order[i : i + size] for i in range(0, len(order), size)])
            rest = [batch for batch in batches if not done.issuperset(batch)]
            bar = processes.bar(
                f"{method} {data_type}", "question", sum(map(len, batches)), sum(map(len, rest))
            )
            for item in answer_batches(rest, of_type, prompts, model, tokenizer, merger, options):
                journal.add(item)
                bar.update(len(item["questions"]))
            bar.close()

            # 4. Save, in the order of the questions
            processes.wait()
            if processes.is_main and not processes.is_shard:
                journal.reread()
                named = {
                    "model_name": options.model_name,
                    "prompt_set": options.prompts,
                    "dataset": options.dataset,
                    "data_type": data_type,
                }
                save_result(leaf, config, named, journal.items, prompts, tokenizer)
                journal.remove()
    if waiting and encoder.shortened:
        processes.say(
            f"{encoder.shortened} prompts did not fit into the model: passages were shortened"
        )
    processes.wait()
    if processes.is_shard:
        processes.say_part_is_done()
        return
    for data_type, (leaf, _) in leaves.items() if processes.is_main else ():
        means = mean_scores(read_json(leaf / "predict.json", "the predictions"))
        shown = "  ".join(f"{metric} {means[metric]:.4f}" for metric in METRICS)
        print(
            f"{method} {data_type}: {shown}  ({len(records[data_type])} questions) {relative(leaf)}"
        )
    processes.say("next: another --inference_method, or the table: python src/report.py")


def save_result(
    leaf: Path,
    config: dict,
    named: dict[str, str],
    items: list[dict],
    prompts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write `predict.json`, `config.json` and `result.txt` from the journal's `items`.

    `named` are the arguments that `config` holds as hashes or not at all.
    """
    by_question = {
        did: row
        for item in items
        for did, row in zip(item["questions"], item["predictions"], strict=True)
    }
    predictions = [by_question[did] for did in range(len(prompts))]
    measured = {
        "seconds": round(sum(item["seconds"] for item in items), 3),
        "questions": len(predictions),
        "prompt_tokens": sum(map(len, prompts)),
        "generated_tokens": sum(
            len(tokenizer(row["text"], add_special_tokens=False).input_ids) for row in predictions
        ),
    }
    write_json(leaf / "predict.json", predictions)
    write_json(leaf / "config.json", {**config, PROVENANCE: provenance(), "measured": measured})
    write_text(leaf / "result.txt", result_text(predictions, {**named, **config}))


def result_text(predictions: list[dict], arguments: dict) -> str:
    """`result.txt`: one line per metric, a blank line, the run's arguments."""
    means = mean_scores(predictions)
    lines = [f"{metric}\t{means[metric]:.4f}" for metric in METRICS]
    return "\n".join(lines) + "\n\n" + json.dumps(arguments, ensure_ascii=False, indent=2) + "\n"


if __name__ == "__main__":
    run_stage(main)
