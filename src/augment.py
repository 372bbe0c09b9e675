"""Stage 1: retrieve passages for each question, rewrite each and write questions about it.

    python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    python src/augment.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_path data/demo/questions.json --data_type test --index_name demo --sample 10

    python src/augment.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa \
        --data_path data/2wikimultihopqa/ --sample 300 --topk 3

Writes `data_aug/{dataset}/{data_type}.json` (Self-Augmentation, arXiv:2501.15915, section 3.2.1).
Started again after a stop, it goes on where it was.
"""

import argparse
from pathlib import Path

from tqdm import tqdm

from utils.arguments import add_data_flags, add_model_flags, shared_flags
from utils.augmented import model_keys
from utils.elastic import add_elasticsearch_flags, connection_of
from utils.journal import Journal, refuse_difference, remove_journal
from utils.models import context_length, load_model, load_tokenizer
from utils.parsing import new_parser, positive_integer
from utils.paths import (
    InputError,
    augmented_file,
    folder_name,
    hash_json,
    read_json,
    read_object,
    relative,
    run_stage,
    write_json,
)
from utils.prompting import PromptEncoder, load_prompts, room_for_prompt
from utils.qa_data import load_questions, take_sample
from utils.retrieval import Retriever, open_retriever
from utils.writing import Writer, augment_block

SPARE_PASSAGES = 10  # retrieved beyond topk, to take the place of passages that are dropped


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_model_flags(parser)
    data = add_data_flags(parser)
    data.add_argument(
        "--data_path", required=True, help="folder of the raw data set, or one's own JSON file"
    )
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument("--topk", type=positive_integer, default=3, help="passages per question")
    retrieval.add_argument(
        "--engine",
        choices=["embedded", "elasticsearch", "golden"],
        default="embedded",
        help="BM25 engine; golden takes the supporting passages that the data set names",
    )
    retrieval.add_argument("--index_name", default="wiki", help="index made by prep_elastic.py")
    add_elasticsearch_flags(parser)
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--max_new_tokens", type=positive_integer, default=512, help="tokens of one text at most"
    )
    writing.add_argument(
        "--temperature", type=float, default=0.7, help="sampling temperature; 0 is greedy"
    )
    writing.add_argument(
        "--top_k_sampling", type=positive_integer, default=50, help="sample from the K best tokens"
    )
    writing.add_argument(
        "--max_attempts",
        type=positive_integer,
        default=5,
        help="tries at a valid list of questions before a passage is dropped",
    )
    writing.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size", type=positive_integer, default=32, help="texts generated side by side"
    )
    running.add_argument(
        "--overwrite", action="store_true", help="make this model's texts anew if there are any"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.temperature < 100:
        parser.error("--temperature must be 0 (greedy) or a small positive number")
    return options


def open_engine(options: argparse.Namespace, questions: dict[str, list[dict]]) -> Retriever | None:
    """The index that the flags name; None for the golden passages, which the questions carry.

    Raises `InputError` where the index cannot be used or no question has golden passages.
    """
    if options.engine != "golden":
        connection = connection_of(options) if options.engine == "elasticsearch" else None
        retriever = open_retriever(options.engine, options.index_name, connection)
        if (rows := retriever.identity.get("rows", options.topk)) < options.topk:
            raise InputError(
                f"the index {options.index_name} holds {rows} passages, fewer than --topk "
                f"{options.topk}; give a smaller number, or another --index_name"
            )
        return retriever
    records = [record for records in questions.values() for record in records]
    without = sum(not record.get("golden_passages") for record in records)
    if without == len(records):
        raise InputError(
            f"--engine golden: no question of {options.dataset} has golden_passages; use another "
            "engine, or add the field to the questions"
        )
    if without:
        print(f"{without} of {len(records)} questions have no golden passage and get none")
    return None


def with_candidates(block: list[dict], retriever: Retriever | None, topk: int) -> list[dict]:
    """The questions of `block` with their "candidates": passages, best first, each once."""
    if retriever is None:
        found = [record.get("golden_passages", []) for record in block]
    else:
        hits = retriever.search([record["question"] for record in block], topk + SPARE_PASSAGES)
        found = [[hit["text"] for hit in best] for best in hits]
    return [
        {**record, "candidates": list(dict.fromkeys(passages))}
        for record, passages in zip(block, found, strict=True)
    ]


def existing_records(path: Path, questions: list[dict], options: argparse.Namespace) -> list[dict]:
    """The records that stand at `path`, to which this model's texts are added.

    Raises `InputError` where they are about other questions, unless `--overwrite` may drop them:
    it never drops another model's texts.
    """
    records = read_json(path, "the file") if path.exists() else []
    if not records or [r["question"] for r in records] == [q["question"] for q in questions]:
        return records
    own_key = model_keys(options.model_name)[1]
    keys = {key for r in records for entry in r.get("augment", []) for key in entry}
    if options.overwrite and not any(key.endswith("_qa") and key != own_key for key in keys):
        return []
    raise InputError(
        f"{relative(path)} holds {len(records)} questions, not the {len(questions)} of this run; "
        "use the same --data_path and --sample, --overwrite if no other model wrote into it, or "
        "move the file away"
    )


def merge_into_file(
    existing: list[dict], records: list[dict], options: argparse.Namespace
) -> list[dict]:
    """`records` under this model's keys, added to what other models wrote."""
    rewrite_key, pairs_key = model_keys(options.model_name)
    merged = []
    for index, record in enumerate(records):
        old = existing[index] if existing else record
        entries = [
            {key: value for key, value in entry.items() if key not in (rewrite_key, pairs_key)}
            for entry in (old["augment"] if existing else [])
        ]
        by_passage = {entry["passage"]: entry for entry in entries}
        for new in record["augment"]:
            entry = by_passage.get(new["passage"])
            if entry is None:
                entry = {"pid": len(entries), "passage": new["passage"]}
                entries.append(entry)
            entry |= {rewrite_key: new["rewrite"], pairs_key: new["qa"]}
        merged.append({**old, "augment": entries, "passages": [e["passage"] for e in entries]})
    return merged


def main() -> None:
    """Check, load, write block by block, save."""
    options = parse_arguments()

    # 1. Check everything that needs no model
    model_folder = folder_name(options.model_name)
    questions = load_questions(options.dataset, options.data_path)
    if options.data_type:
        if options.data_type not in questions:
            raise InputError(
                f"--data_type {options.data_type}: {options.dataset} has {', '.join(questions)}"
            )
        questions = {options.data_type: questions[options.data_type]}
    questions = take_sample(questions, options.sample)
    prompts = load_prompts(options.prompts, options.dataset, with_cot=False)
    retriever = open_engine(options, questions)
    settings = {
        "model": options.model_name,
        "prompts": prompts.fingerprint,
        "engine": options.engine,
        "index": {"name": options.index_name, **retriever.identity} if retriever else None,
        "topk": options.topk,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k_sampling": options.top_k_sampling,
        "max_attempts": options.max_attempts,
        "seed": options.seed,
        "batch_size": options.batch_size,
    }

    plans = {
        data_type: (
            augmented_file(options.dataset, data_type),
            {**settings, "questions": hash_json([[r["question"], r["answer"]] for r in records])},
        )
        for data_type, records in questions.items()
    }
    for data_type, (path, _) in plans.items():
        existing_records(path, questions[data_type], options)
    finished = {
        data_type: texts_that_stand(path, asked, options)
        for data_type, (path, asked) in plans.items()
    }
    waiting = [data_type for data_type in plans if finished[data_type] is None]
    if not waiting:
        print(f"all {len(plans)} files stand already")
        print(f"next: python src/encode.py {shared_flags(options, training=False)}")
        return

    # 2. Load
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    longest = context_length(options.model_name, options.trust_remote_code)
    room = room_for_prompt(longest, options.max_new_tokens)
    encoder = PromptEncoder(tokenizer, prompts, False, room)
    model = load_model(options.model_name, options.dtype, tokenizer, options.trust_remote_code)
    writer = Writer(model, tokenizer, encoder, options)
    for texts in finished.values():
        writer.done |= texts or {}
    known = set(writer.done)

    # 3. Write, block by block; a finished block is in the journal
    block_size = max(1, 2 * options.batch_size // options.topk)
    for data_type in waiting:
        records = questions[data_type]
        path, asked = plans[data_type]
        journal = Journal(journal_file(path, model_folder), asked)
        done = [record for block in journal.items for record in block["records"]]
        for block in journal.items:
            writer.done |= block["passages"]
        bar = tqdm(
            total=len(records), initial=len(done), unit="question", desc=f"augment {data_type}"
        )
        for start in range(len(done), len(records), block_size):
            block = with_candidates(records[start : start + block_size], retriever, options.topk)
            before = set(writer.done)
            augmented = augment_block(block, options.topk, writer)
            new = {p: result for p, result in writer.done.items() if p not in before}
            journal.add({"records": augmented, "passages": new})
            done += augmented
            bar.update(len(block))
        bar.close()

        # 4. Save
        merged = merge_into_file(existing_records(path, records, options), done, options)
        write_json(config_file(path, model_folder), asked)
        write_json(path, merged)
        journal.remove()
        short = sum(len(record["augment"]) < options.topk for record in done)
        print(
            f"{relative(path)}: {len(done)} questions, "
            f"{sum(len(record['augment']) for record in done)} passages"
            + (f"; {short} questions have fewer than {options.topk}" if short else "")
        )
    written = [result for passage, result in writer.done.items() if passage not in known]
    taken = sum(result["qa"] is not None for result in written)
    print(
        f"passages: {taken} taken, {len(written) - taken} dropped, "
        f"{sum(result['attempts'] for result in written)} attempts at question lists"
    )
    if taken < len(written):
        print(
            "a dropped passage is left out for every method, icl too, and the next hit takes its "
            "place; where there are many, raise --max_new_tokens or use a stronger model"
        )
    if writer.encoder.shortened:
        print(f"{writer.encoder.shortened} requests did not fit into the model and were shortened")
    print(f"next: python src/encode.py {shared_flags(options, training=False)}")


def journal_file(path: Path, model: str) -> Path:
    """The journal of unfinished work beside `path`; hidden, so that no stage takes it for data."""
    return path.with_name(f".{path.stem}.{model}.journal")


def config_file(path: Path, model: str) -> Path:
    """The settings that made `model`'s texts in `path`."""
    return path.with_name(f".{path.stem}.{model}.settings")


def texts_that_stand(path: Path, asked: dict, options: argparse.Namespace) -> dict | None:
    """What this model wrote into `path` (see `Writer.done`), None where it must still be made.

    Raises `InputError` where the texts were made with other settings than `asked`. `--overwrite`
    forgets the texts and unfinished work.
    """
    rewrite_key, pairs_key = model_keys(options.model_name)
    config = config_file(path, folder_name(options.model_name))
    if options.overwrite:
        config.unlink(missing_ok=True)
        remove_journal(journal_file(path, folder_name(options.model_name)))
        return None
    if not path.exists():
        return None
    texts = {
        entry["passage"]: {"rewrite": entry[rewrite_key], "qa": entry[pairs_key], "attempts": 0}
        for record in read_json(path, "the file")
        for entry in record.get("augment", [])
        if pairs_key in entry
    }
    if config.exists():
        refuse_difference(
            relative(path),
            read_object(config, "the settings file"),
            asked,
            "use the same settings, or --overwrite to start anew",
        )
        if texts:  # a kill may have come just before its removal
            remove_journal(journal_file(path, folder_name(options.model_name)))
        return texts or None
    if texts:
        raise InputError(
            f"{relative(path)} holds texts of {options.model_name} that this stage did not write; "
            "go on with encode.py, or use --overwrite to replace them"
        )
    return None


if __name__ == "__main__":
    run_stage(main)
