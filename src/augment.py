r"""Stage 1: retrieve passages for each question, rewrite each and write questions about it.

    python prep_elastic.py --data_path data/demo/corpus.tsv --index_name demo
    python src/augment.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_path data/demo/questions.json --data_type test --index_name demo --sample 10

    python src/augment.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa \
        --data_path data/2wikimultihopqa/ --sample 300 --topk 3

    python src/augment.py --model_name llama3-8b-instruct --dataset popqa \
        --data_path data/popqa/ --api_base http://localhost:8000/v1     # vLLM or another server

Writes `data_aug/{dataset}/{data_type}.json` (Self-Augmentation, arXiv:2501.15915, section 3.2.1).
Started again after a stop, it goes on where it was.
"""

import argparse

from tqdm import tqdm

from utils.arguments import new_parser, positive_integer, seed_number
from utils.augmentation.files import AugmentedFiles
from utils.augmentation.server import Server, add_server_flags
from utils.augmentation.writing import (
    LocalModel,
    records_of,
    results_in,
    summary,
    work_key,
    write_in_waves,
)
from utils.files import relative
from utils.flags import add_data_flags, add_model_flags, model_of, shared_flags
from utils.journal import Journal
from utils.models import context_length, dtype_name, load_tokenizer, model_identity
from utils.processes import Processes, add_shard_flag, start_processes
from utils.prompting import PromptEncoder, PromptSet, load_prompts, room_for_prompt
from utils.questions import load_questions, take_sample
from utils.retrieval.elasticsearch import add_elasticsearch_flags, connection_of
from utils.retrieval.embedded import Retriever, open_retriever
from utils.running import InputError, run_stage

SPARE_PASSAGES = 10  # retrieved beyond topk, to take the place of passages that are dropped
SEARCHES = 100  # questions in one block


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
    writing.add_argument("--seed", type=seed_number, default=0, help="seed of the sampling")
    writing.add_argument(
        "--write_per_question",
        action="store_true",
        help="write anew about a passage for each question that found it, as the published "
        "software does",
    )
    add_server_flags(parser)
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size", type=positive_integer, default=32, help="texts generated side by side"
    )
    running.add_argument(
        "--overwrite", action="store_true", help="make this model's texts anew if there are any"
    )
    add_shard_flag(running)
    options = parser.parse_args(arguments)
    if not 0 <= options.temperature < 100:
        parser.error("--temperature must be 0 (greedy) or a small positive number")
    if options.api_base == "":
        parser.error("--api_base is empty; give the server's address, or leave it out")
    if options.api_model and not options.api_base:
        parser.error("--api_model is a server's name for the model; give its address: --api_base")
    if options.shard and options.overwrite:
        parser.error(
            "--overwrite forgets what the other jobs of an array have written; to make the texts "
            "anew by --shard, move the files in data_aug/ away and leave --overwrite out"
        )
    return options


def open_engine(
    options: argparse.Namespace, questions: dict[str, list[dict]], processes: Processes
) -> Retriever | None:
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
        processes.say(f"{without} of {len(records)} questions have no golden passage and get none")
    return None


def find_candidates(
    questions: dict[str, list[dict]], retriever: Retriever | None, options: argparse.Namespace
) -> dict[str, list[dict[str, str]]]:
    """For each question of each data type its candidates, best first: work key -> passage.

    A question that stands in several data types is searched once.
    """
    found: dict[str, list[str]] = {}
    if retriever is not None:
        known: dict[str, str] = {}  # a passage that many questions find is held once
        asked = list(dict.fromkeys(r["question"] for rows in questions.values() for r in rows))
        with tqdm(total=len(asked), unit="question", desc="retrieve") as bar:
            for start in range(0, len(asked), SEARCHES):
                block = asked[start : start + SEARCHES]
                hits = retriever.search(block, options.topk + SPARE_PASSAGES)
                for question, best in zip(block, hits, strict=True):
                    found[question] = [known.setdefault(h["text"], h["text"]) for h in best]
                bar.update(len(block))

    def candidates(data_type: str, record: dict) -> dict[str, str]:
        own = (data_type, record) if options.write_per_question else None
        passages = record.get("golden_passages", []) if retriever is None else None
        passages = found[record["question"]] if passages is None else passages
        return {work_key(passage, own): passage for passage in passages}

    return {
        data_type: [candidates(data_type, record) for record in records]
        for data_type, records in questions.items()
    }


def load_author(options: argparse.Namespace, prompts: PromptSet) -> LocalModel:
    """The model of `--model_name`, ready to write."""
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    longest = context_length(options.model_name, options.trust_remote_code)
    room = room_for_prompt(longest, options.max_new_tokens)
    encoder = PromptEncoder(tokenizer, prompts, False, room)
    model = model_of(options, tokenizer)
    return LocalModel(model, tokenizer, encoder, options)


def refuse_nothing_taken(
    results: dict[str, dict], journal: Journal, options: argparse.Namespace
) -> None:
    """Raise `InputError` where every passage was dropped, and forget that they were.

    The journal stays where it holds texts of a stopped run of other questions.
    """
    if any(result["qa"] is not None for result in results.values()):
        return
    if all(result["qa"] is None for result in results_in(journal).values()):
        journal.remove()
    raise InputError(
        f"none of {len(results)} passages got a valid list of three question-answer pairs, so "
        f"nothing was saved; does {options.model_name} know the prompts of --prompts "
        f"{options.prompts} (the demo model needs --prompts demo)? Else raise --max_new_tokens "
        f"(now {options.max_new_tokens}), or use a stronger model"
    )


def main() -> None:
    """Check, load, retrieve, write wave by wave, save."""
    options = parse_arguments()
    processes = start_processes(options.shard, options.device_map)

    # 1. Check everything that needs no model
    questions = load_questions(options.dataset, options.data_path)
    if options.data_type:
        if options.data_type not in questions:
            raise InputError(
                f"--data_type {options.data_type}: {options.dataset} has {', '.join(questions)}"
            )
        questions = {options.data_type: questions[options.data_type]}
    questions = take_sample(questions, options.sample)
    prompts = load_prompts(options.prompts, options.dataset, with_cot=False)
    retriever = open_engine(options, questions, processes)
    server = Server(options, prompts, processes.say) if options.api_base else None
    settings = {
        "api_model": server.model if server else None,
        "model": options.model_name if server else model_identity(options.model_name),
        "dtype": None if server else dtype_name(options.dtype),
        "prompts": prompts.fingerprint,
        "engine": options.engine,
        "index": {"name": options.index_name, **retriever.identity} if retriever else None,
        "topk": options.topk,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_k_sampling": options.top_k_sampling,
        "max_attempts": options.max_attempts,
        "seed": options.seed,
        "batch_size": None if server else options.batch_size,
        **({"write_per_question": True} if options.write_per_question else {}),
    }
    files = AugmentedFiles(options, questions, settings)
    next_stage = f"next: python src/encode.py {shared_flags(options, training=False)}"
    if not files.waiting:
        if processes.is_main:
            files.remove_old_journal()
        processes.say(f"all {len(questions)} files stand already\n{next_stage}")
        return
    if options.overwrite:
        if processes.is_main:
            files.forget()
        processes.wait()

    # 2. Load
    author = server or load_author(options, prompts)

    # 3. Retrieve; one process for all of a launch
    waiting = {data_type: questions[data_type] for data_type in files.waiting}
    found = None
    if processes.is_main or processes.is_shard:
        found = find_candidates(waiting, retriever, options)
    candidates = processes.agree(found)
    candidates = {name: files.keep_passages(name, rows) for name, rows in candidates.items()}
    of_all = [passages for rows in candidates.values() for passages in rows]
    if not any(of_all):
        raise InputError(
            f"no passage was found for any of the {len(of_all)} questions; is the index "
            f"{options.index_name} that of their corpus?"
        )

    # 4. Write, wave by wave; a finished chunk is in the journal
    results = dict(files.results)
    with Journal(files.journal, settings, processes.index, processes.count > 1) as journal:
        write_in_waves(of_all, results, journal, author, processes, options)
        processes.wait()
        if processes.is_shard:
            processes.say_part_is_done()
            return
        if not processes.is_main:
            return

        # 5. Save
        refuse_nothing_taken(results, journal, options)
        if replaced := files.replaced():  # until the larger file stands: a stop loses nothing
            again = {key: {**result, "attempts": 1} for key, result in replaced.items()}
            journal.add({"results": again, "shortened": 0})
        for data_type, rows in waiting.items():
            records = records_of(rows, candidates[data_type], results, options.topk)
            files.save(data_type, records)
            short = sum(len(record["augment"]) < options.topk for record in records)
            print(
                f"{relative(files.path(data_type))}: {len(records)} questions, "
                f"{sum(len(record['augment']) for record in records)} passages"
                + (f"; {short} questions have fewer than {options.topk}" if short else "")
            )
        shortened = sum(item["shortened"] for item in journal.items)
        files.remove_finished(journal, results)
    print(summary(of_all, results, files.results, shortened, options))
    print(next_stage)


if __name__ == "__main__":
    run_stage(main)
