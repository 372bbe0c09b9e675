r"""Verdicts of a model on the answers: is each right, whatever its wording?

    python src/judge.py --model_name llama3-8b-instruct --dataset popqa \
        --api_base http://localhost:8000/v1     # vLLM or another server

    python src/judge.py --model_name qwen2.5-1.5b-instruct --dataset demo --answers_of demo-model

The judge, which should be a stronger model than the one that answered, reads the question, the
right answers and all that was written, and says yes or no (text `judge` of the prompt set). Each
result under `output/` gets a `judge.json` with the judge, a verdict and the judge's words for each
question; `report.py` shows them. What is asked in the same words is asked once. Started again after
a stop, it goes on where it was.
"""

import argparse
import sys

from utils.arguments import new_parser, positive_integer
from utils.augmentation.sampling import Sampling
from utils.augmentation.server import Server, add_server_flags, check_server_flags
from utils.files import hash_json, relative
from utils.prompting import JUDGE, PromptSet, load_judge
from utils.recipe import Recipe, add_flags, parse_recipe
from utils.running import InputError, one_line, run_stage


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model")
    results = parser.add_argument_group("results to judge")
    results.add_argument("--dataset", help="this data set only (not set: all)")
    results.add_argument("--answers_of", help="the answers of this model only (not set: of all)")
    add_server_flags(parser)
    running = parser.add_argument_group("running")
    add = running.add_argument
    tokens = "tokens of a verdict at most; a judge that thinks needs more"
    add("--max_new_tokens", type=positive_integer, default=16, help=tokens)
    add("--batch_size", type=positive_integer, default=32, help="verdicts side by side, of a model")
    add("--overwrite", action="store_true", help="judge again what is judged already")
    options, recipe = parse_recipe(parser, arguments)
    check_server_flags(parser, options)
    return options, recipe


def judge_of(options: argparse.Namespace, prompts: PromptSet, server: Server | None) -> dict:
    """What a verdict is made with, as it is kept beside it."""
    from utils.model_files import model_identity
    from utils.models import dtype_name

    name = options.model_name
    return {
        "api_model": server.model if server else None,
        "model": name if server else model_identity(name),
        "dtype": None if server else dtype_name(options.dtype),
        "prompts": hash_json(prompts.texts[JUDGE]),
        "max_new_tokens": options.max_new_tokens,
    }


def main() -> None:
    """Check, load, judge result by result, say what came out."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.augmentation.writing import LocalModel
    from utils.judging import AS_IT_IS, Judgement, refuse_long
    from utils.processes import Processes, refuse_launcher
    from utils.reporting.runs import output_folder, read_runs

    refuse_launcher("judge.py")
    processes = Processes()

    # 1. Check everything that needs no model
    prompts = load_judge(recipe.prompts)
    runs, left_out = read_runs(output_folder(), options.answers_of, options.dataset)
    for sentence in left_out:
        print(f"warning: {one_line(sentence)}", file=sys.stderr)
    if not runs:
        where = relative(output_folder())
        raise InputError(f"there is no answer under {where}; run inference.py, or choose others")
    sampling = Sampling.greedy(options.max_new_tokens)
    server = Server(options, AS_IT_IS, sampling, processes.say) if options.api_base else None
    judge = judge_of(options, prompts, server)
    results = [Judgement(run.folder, prompts, judge) for run in runs]
    known = [result.check(options.overwrite) for result in results]
    waiting = [result for result, found in zip(results, known, strict=True) if found is None]

    # 2. Judge; the model is loaded for the first verdict that is missing
    said = {message: text for found in known if found for message, text in found.items()}
    if waiting:
        own = recipe, AS_IT_IS, sampling, options.batch_size, processes.say
        author = server or LocalModel(*own)
        if not server:
            refuse_long(author, [message for result in waiting for message in result.messages])
        total, old = sum(len(result.messages) for result in waiting), list(waiting)

        def begin() -> None:
            """From the first new verdict on a stopped --overwrite goes on without the flag."""
            while old:
                old.pop().forget()

        with processes.bar("judge", "answer", total, total) as bar:
            for result in waiting:
                result.ask(author, said, begin, bar.update)

    # 3. Say what came out
    for result in results:
        print(result.summary())
    processes.say("next: the judge beside F1: python src/report.py")


if __name__ == "__main__":
    run_stage(main)
