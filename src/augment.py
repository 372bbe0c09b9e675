r"""Stage 1: retrieve passages for each question, rewrite each and write questions about it.

    python src/augment.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa \
        --data_path data/2wikimultihopqa/ --sample 300 --topk 3

    python src/augment.py --model_name llama3-8b-instruct --dataset popqa \
        --data_path data/popqa/ --api_base http://localhost:8000/v1     # vLLM or another server

    python src/augment.py --model_name llama3.2-1b-instruct --dataset mydocs --passages mydocs

The last one writes about every passage of an index and needs no questions (docs/documents.md).
Writes `data_aug/{dataset}/{data_type}.json` (Self-Augmentation, arXiv:2501.15915, section 3.2.1).
Started again after a stop, it goes on where it was.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from utils.arguments import add_shard_flag, new_parser, positive_integer
from utils.augmentation.sampling import Sampling, add_sampling_flags
from utils.augmentation.server import Server, add_server_flags, check_server_flags
from utils.layout import CORPUS
from utils.questions import ANSWERS
from utils.recipe import Recipe, add_flags, parse_recipe
from utils.retrieval import PassageIndex, add_index_flags, index_settings
from utils.running import run_stage

if TYPE_CHECKING:
    from utils.augmentation.files import AugmentedFiles


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    data = add_flags(parser, "model", "data")["data"]
    source = data.add_mutually_exclusive_group(required=True)
    own = "folder of the raw data set, or your own JSON file (not set: --passages)"
    source.add_argument("--data_path", help=own)
    every = "index about whose every passage is written, in place of those that questions find: "
    every += "the data type corpus, whose first N passages --sample takes (not set: --data_path)"
    source.add_argument("--passages", metavar="INDEX", help=every)
    right = "right answers of a published data set; published: as the published software has them "
    right += "(2wikimultihopqa: the aliases in place of the answer), all: with the answer itself, "
    right += "all aliases, demonyms and PopQA's possible_answers; your own file gives what it has"
    data.add_argument("--answers", choices=ANSWERS, default=ANSWERS[0], help=right)
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument("--topk", type=positive_integer, default=3, help="passages per question")
    golden = "; golden takes the supporting passages that the data set names"
    add_index_flags(parser, retrieval, golden)
    writing = add_sampling_flags(parser)
    writing.add_argument(
        "--write_per_question",
        action="store_true",
        help="write again about a passage for each question, as the published software does",
    )
    add_server_flags(parser)
    running = parser.add_argument_group("running")
    running.add_argument(
        "--batch_size", type=positive_integer, default=32, help="texts generated side by side"
    )
    running.add_argument(
        "--overwrite", action="store_true", help="make this model's texts again if there are any"
    )
    add_shard_flag(running)
    options, recipe = parse_recipe(parser, arguments)
    check_server_flags(parser, options)
    if options.pairs > parser.get_default("pairs") and not options.temperature:
        parser.error("greedy texts are the same each time; give --temperature, or no more --pairs")
    if options.shard and options.overwrite:
        parser.error(
            "--overwrite would forget what other jobs have written; with --shard, move the files "
            "in data_aug/ away instead"
        )
    if options.passages is not None:
        if problem := problem_with_passages(parser, options):
            parser.error(problem)
        options.index_name, options.topk = options.passages, 1
    return options, recipe


def problem_with_passages(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> str | None:
    """Why `--passages` cannot go with the other flags, if it cannot."""
    for_questions = ("topk", "answers", "index_name", "write_per_question")
    given = [n for n in for_questions if getattr(options, n) != parser.get_default(n)]
    words = [f"--{name}" for name in given] + ["--engine golden"] * (options.engine == "golden")
    if words:
        return f"--passages needs no questions and names the index; leave out {', '.join(words)}"
    if options.data_type not in (None, CORPUS):
        return f"--passages writes the data type {CORPUS}; leave out --data_type"
    return None


def open_work(
    options: argparse.Namespace, recipe: Recipe, say: Callable[[str], None]
) -> tuple[dict[str, list[dict]], PassageIndex | None, Callable[..., "AugmentedFiles"]]:
    """The questions of each data type, the index (None: golden passages), and what makes the object
    for the files. Raises `InputError` if data or index cannot be used."""
    from utils.augmentation import corpus, finding, records
    from utils.augmentation.files import AugmentedFiles
    from utils.questions import load_sample

    if options.passages is not None:
        index = finding.open_engine(options, {}, say)
        rows, whole = corpus.corpus_rows(index, recipe.sample)
        return {CORPUS: rows}, index, partial(corpus.CorpusFiles, whole=whole)
    where = recipe.dataset, options.data_path
    questions = load_sample(*where, recipe.data_type, recipe.sample, options.answers)
    records.refuse_other_answers(recipe.dataset, questions, recipe.model_name, options.answers)
    return questions, finding.open_engine(options, questions, say), AugmentedFiles


def settings_of(
    options: argparse.Namespace,
    sampling: Sampling,
    prompts: str,
    index: PassageIndex | None,
    server: Server | None,
) -> dict:
    """What the texts are made with, as it is kept beside them; `prompts` is their fingerprint."""
    from utils.model_files import model_identity
    from utils.models import dtype_name

    name = options.model_name
    retrieval = {**index_settings(options, index), "topk": options.topk}
    return {
        "api_model": server.model if server else None,
        "model": name if server else model_identity(name),
        "dtype": None if server else dtype_name(options.dtype),
        "prompts": prompts,
        **(retrieval if options.passages is None else {}),
        **sampling.recorded,
        "batch_size": None if server else options.batch_size,
        **({"write_per_question": True} if options.write_per_question else {}),
        **({"answers": options.answers} if options.answers != ANSWERS[0] else {}),
    }


def main() -> None:
    """Check, load, retrieve, write wave by wave, save."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.augmentation import finding, writing
    from utils.journal import Journal, remove_journal
    from utils.processes import start_processes
    from utils.prompting import load_prompts

    processes = start_processes(options.shard, recipe.device_map)
    next_stage = f"next: python src/encode.py {recipe.flags('model', 'data')}"
    # 1. Check everything that needs no model
    questions, index, files_of = open_work(options, recipe, processes.say)
    prompts = load_prompts(recipe.prompts, recipe.dataset, with_cot=False)
    sampling = Sampling.of(options, prompts)
    server = Server(options, prompts, sampling, processes.say) if options.api_base else None
    settings = settings_of(options, sampling, prompts.fingerprint, index, server)
    made_by = recipe.dataset, recipe.model_name
    files = files_of(*made_by, questions, settings, options.overwrite)
    if not files.waiting:
        if processes.is_main:
            files.remove_old_journal()
        processes.say(f"all {len(questions)} files exist already\n{next_stage}")
        return

    # 2. Load, and retrieve: one process for all of a launch
    own = recipe, prompts, sampling, options.batch_size, processes.say
    author = server or writing.LocalModel(*own)
    waiting, found = {name: questions[name] for name in files.waiting}, None
    if processes.is_main or processes.is_shard:
        found = finding.find_candidates(waiting, index, options.topk, options.write_per_question)
    candidates = files.keep_passages(processes.agree(found))
    of_all = [hits for rows in candidates.values() for hits in rows]
    if options.overwrite and processes.is_main:
        remove_journal(files.journal)
    processes.wait()

    # 3. Write, wave by wave; a finished chunk is in the journal
    results = dict(files.results)
    with Journal(files.journal, settings, processes.index, processes.count > 1) as journal:
        begin = files.begin if processes.is_main else lambda: None
        writing.write_in_waves(of_all, results, journal, author, processes, options.topk, begin)
        processes.say("" if server else author.encoder.shortened_words("the model"))
        processes.wait()
        if processes.is_shard:
            processes.say_part_is_done()
        if processes.is_shard or not processes.is_main:
            return
        writing.refuse_nothing_taken(results, journal, recipe, sampling.max_new_tokens)

        # 4. Save
        for name in files.waiting:
            print(files.save(name, candidates[name], results, options.topk))
        files.remove_finished(journal, results)
    print(writing.summary(of_all, results, files.results, options.topk), next_stage, sep="\n")


if __name__ == "__main__":
    run_stage(main)
