r"""Stage 2: every passage becomes an adapter (LoRA on the feed-forward layers).

    python src/encode.py --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --sample 10 --learning_rate 4e-3 --num_train_epochs 1

    python src/encode.py --model_name llama3.2-1b-instruct --dataset 2wikimultihopqa --sample 300 \
        --with_cot --per_device_train_batch_size 1 --num_train_epochs 1 --learning_rate 3e-4 \
        --lora_rank 2 --lora_alpha 32

Reads what `augment.py` wrote and writes, under `offline/{model}/rank=…_alpha=…/{dataset}/…/`, a
PEFT folder `data_{did}/passage_{pid}/` for each (Additional Parameter Training, arXiv:2501.15915,
section 3.2.2). Equal training data is trained once and is once on the disk: further folders are
hard links. Started again after a stop, it trains what is missing; a damaged adapter is made again.
"""

import argparse
from typing import TYPE_CHECKING

from utils.arguments import add_shard_flag, new_parser, positive_integer
from utils.recipe import SAVE_DTYPES, Recipe, add_flags, parse_recipe
from utils.retrieval import add_index_flags
from utils.running import run_stage

if TYPE_CHECKING:
    from utils.experiment import Experiment
    from utils.processes import Processes
    from utils.store.check import Checked


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model", "data", "adapter")
    searching = parser.add_argument_group("search for neighbours (with --neighbours)")
    add_index_flags(parser, searching)
    running = parser.add_argument_group("running")
    add = running.add_argument
    side_by_side = "adapters trained side by side (not set: as many as fit); with --neighbours the "
    side_by_side += "most of a group, which trains as a whole (not set: 32); with --shared the "
    side_by_side += "passages of a step (not set: 8)"
    add("--adapters_per_batch", type=positive_integer, help=side_by_side)
    add("--save_dtype", choices=SAVE_DTYPES, default="float32", help="dtype of the saved adapters")
    add_shard_flag(running)
    add("--overwrite", action="store_true", help="train adapters again that exist already")
    return parse_recipe(parser, arguments)


def main() -> None:
    """Check, make what is missing, say what was made."""
    options, recipe = parse_arguments()
    # torch takes seconds to import: not before the flags are known to be good
    from utils.experiment import Experiment
    from utils.files import relative
    from utils.processes import start_processes
    from utils.sources import SOURCES
    from utils.store import check, moved
    from utils.store.links import Saver

    processes = start_processes(options.shard, recipe.device_map)

    # 1. Check everything that needs no model
    experiment, source = Experiment(recipe), SOURCES[recipe.adapters]
    processes.say(experiment.short_of)
    experiment.check_start()
    experiment.bank()  # refuses a model that adapters would fit in part or not at all
    experiment.refuse_trained_questions()
    if recipe.neighbours or recipe.shared:
        meet_others(experiment, options, processes)
    works = source.works(experiment)
    processes.say(experiment.encoder.shortened_words("--max_length or the model"))
    settings = {**experiment.settings, "dtype": experiment.dtype, "save_dtype": options.save_dtype}
    found = []
    if not options.overwrite:
        found = check.check_adapters(experiment, works, settings, weights=True)
    moved.mark_moved(experiment, works, found, settings)
    check.refuse_other_adapters(found)
    right = {one.folder: one.base for one in found if one.state == check.RIGHT}
    missing = {folder for work in works for folder in work.folders} - right.keys()
    bases = set(right.values())
    base = check.check_base(experiment, bases)
    processes.say(
        f"{len(right) + len(missing)} passages, {len(works)} with different training data; "
        f"{len(right)} adapters exist already"
    )

    # 2. What is damaged, or of a passage that the index has elsewhere now, makes room
    make_room(found, processes)
    processes.wait()

    # 3. Give what exists under another question, make the others; each is saved as it is finished
    with Saver(experiment, missing, bases, settings, processes, options.overwrite) as saver:
        if base and not options.overwrite:
            saver.share_existing(works, base)
        if processes.agree(bool(missing)):
            source.make(experiment, works, saver, processes, options.adapters_per_batch)
    processes.wait()
    if processes.is_shard:
        processes.say_part_is_done()
        return
    processes.say(moved.remove_unclaimed(experiment, works) if processes.is_main else "")
    if processes.count == 1:
        print(f"{saver.trained} adapters {recipe.adapters}, {saver}")
    processes.say(f"adapters of {', '.join(experiment.records)}: {relative(experiment.folder)}")
    processes.say(next_step(experiment))


def meet_others(
    experiment: "Experiment", options: argparse.Namespace, processes: "Processes"
) -> None:
    """Before adapters train each other: write the plan of neighbours, check the pool's. Raises
    `InputError` for passages that say something false, which true ones would train."""
    from utils.layout import COUNTERFACTUAL
    from utils.neighbours import make_plan
    from utils.running import InputError
    from utils.sources.shared import check_steps

    if false := [name for name in experiment.records if name.endswith(COUNTERFACTUAL)]:
        raise InputError(
            f"{false[0]} has false passages: their neighbours in the index, and a pool of "
            "--shared, are of the true ones; leave out --neighbours and --shared, or give the "
            "--data_type of true ones"
        )
    if experiment.recipe.neighbours:
        make_plan(experiment, options, processes)
    elif options.adapters_per_batch and not options.overwrite:
        check_steps(experiment, options.adapters_per_batch)


def make_room(found: list["Checked"], processes: "Processes") -> None:
    """Free the places of adapters that are damaged or of another passage, and say how many."""
    from utils.files import remove_folder
    from utils.store import check, moved

    if not (processes.is_main or processes.is_shard):
        return
    if damaged := [one for one in found if one.state == check.DAMAGED]:
        processes.say(f"{len(damaged)} damaged adapters are made again: {damaged[0].problem}")
        for one in damaged:
            remove_folder(one.folder)
    processes.say(moved.set_aside(found))


def next_step(experiment: "Experiment") -> str:
    """The command that answers with the adapters; for a corpus the one that takes questions."""
    flags = experiment.recipe.flags("model", "data", "adapter")
    merge = " --merge mean" if experiment.recipe.shared else ""  # weights that sum to 1
    if len(experiment.corpora) == len(experiment.records):
        return f"next: python src/ask.py {flags} --index_name INDEX{merge}"
    return f"next: python src/inference.py {flags} --inference_method prag{merge}"


if __name__ == "__main__":
    run_stage(main)
