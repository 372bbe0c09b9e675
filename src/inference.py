r"""Stage 3: answer the questions, in one of seven ways.

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
* flare, dragin: passages that are retrieved while the answer is written, for its uncertain
  sentences (arXiv:2305.06983, arXiv:2403.10081); they ask the index of --index_name

The controls (--leave_out, --noise, --locality) change what is read or asked: docs/evidence.md.

Writes `config.json`, `predict.json`, `result.txt` under `output/`. Started again, it goes on.
"""

import argparse

from utils.arguments import add_shard_flag, new_parser
from utils.recipe import ACTIVE, IN_PARAMETERS, ONLY_OF, Recipe, add_flags, parse_recipe
from utils.retrieval import add_index_flags, index_settings, open_index
from utils.running import run_stage


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    groups = ("model", "data", "adapter", "answer", "control", *ONLY_OF)
    add_index_flags(parser, add_flags(parser, *groups)["active"])
    running = parser.add_argument_group("running")
    add_shard_flag(running)
    overwriting = "answer again what is answered already"
    running.add_argument("--overwrite", action="store_true", help=overwriting)
    options, recipe = parse_recipe(parser, arguments)
    if options.overwrite and options.shard:
        problem = "--overwrite would remove what the other jobs of the array have answered"
        parser.error(f"{problem}; delete the result's folder before they start, and leave it out")
    method = recipe.inference_method
    for name in ("engine", "index_name") if method not in ACTIVE else ():
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--inference_method {method} asks no index; leave out --{name}")
    return options, recipe


def main() -> None:
    """Check, load, answer batch by batch, save."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.answering import Answering, Result
    from utils.experiment import Experiment
    from utils.processes import start_processes
    from utils.sources import SOURCES
    from utils.store.check import require_adapters
    from utils.store.merging import check_merge

    processes = start_processes(options.shard, recipe.device_map)

    # 1. Check everything that needs no model
    experiment, base = Experiment(recipe), None
    processes.say(experiment.leave_out_corpora())
    processes.say(experiment.short_of)
    index, searched = None, {}
    if recipe.inference_method in ACTIVE:
        index = open_index(options, recipe.retrieve_topk, "--retrieve_topk")
        searched = index_settings(options, index)
    answering = Answering(experiment, processes, index)
    check_merge(experiment)
    if recipe.inference_method in IN_PARAMETERS:
        experiment.refuse_trained_questions()
        works = SOURCES[recipe.adapters].works(experiment)
        base = require_adapters(experiment, works, experiment.settings)
    results = [Result(experiment, name, base, searched) for name in experiment.records]
    is_main = processes.is_main
    waiting = [one for one in results if not one.check(options.overwrite, is_main)]
    processes.wait()  # so that all have seen the same results

    # 2. Answer; the model is loaded for the first question that has no answer yet
    if options.overwrite:
        answering.begin_again(waiting)
    for result in waiting:
        answering.answer(result)
    if waiting:
        processes.say(answering.encoder.shortened_words("the model"))
    processes.wait()
    if processes.is_shard:
        processes.say_part_is_done()
        return

    # 3. Show the scores
    for result in results if processes.is_main else ():
        print(result.summary())
    processes.say("next: another --inference_method, or the table: python src/report.py")


if __name__ == "__main__":
    run_stage(main)
