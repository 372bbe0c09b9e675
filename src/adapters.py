r"""Look after the adapters that `encode.py` made: list, check, hand over, pack.

    python src/adapters.py list

    python src/adapters.py verify --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1

    python src/adapters.py export --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1 --question_id 0 \
        --output exported/question_0

    python src/adapters.py pack --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1      # unpack: the same flags

The flags of `encode.py` find the same adapters here. `verify` loads every adapter, compares it with
its passage and ends with code 1 if one is missing, damaged or made otherwise. `export` writes one
question's merged adapter for peft and model servers. `pack` puts a data type's into one tar.
"""

import argparse
from pathlib import Path

from utils import layout
from utils.arguments import HelpFormatter, new_parser, whole_number
from utils.files import relative
from utils.recipe import SAVE_DTYPES, Recipe, add_flags
from utils.running import InputError, one_line, run_stage

SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those of vLLM's --max-lora-rank
COMMANDS = {
    "list": "what is under offline/",
    "verify": "check that every passage has its adapter, and that it is sound",
    "export": "write one question's merged adapter as a PEFT folder",
    "pack": "put a data type's adapters into one tar",
    "unpack": "make the folders of packed adapters again",
}


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Recipe]:
    """The command line."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    look = {"formatter_class": HelpFormatter, "allow_abbrev": False}
    parsers = {}
    for name, meaning in COMMANDS.items():
        title = f"{meaning[0].upper()}{meaning[1:]}."
        parsers[name] = commands.add_parser(name, help=meaning, description=title, **look)
        if name != "list":
            add_flags(parsers[name], "model", "data", "adapter")
    add_flags(parsers["export"], "merging")
    add = parsers["export"].add_argument_group("exporting").add_argument
    padding = "rank of the exported adapter, filled up with zeros; 0: as it is (not set: the first"
    padding += f" of {', '.join(map(str, SERVER_RANKS))} that holds it)"
    dtype = "dtype of the exported adapter"
    add("--question_id", type=whole_number, required=True, help="N of data_N: the question's place")
    add("--output", type=Path, required=True, help="folder to write, which must not exist")
    add("--pad_rank", type=whole_number, help=padding)
    add("--save_dtype", choices=SAVE_DTYPES, default="float32", help=dtype)
    options = parser.parse_args(arguments)
    recipe = Recipe.of(options)
    if problem := recipe.problem():
        parsers[options.command].error(problem)
    return options, recipe


def main() -> None:
    """Do what the command says."""
    options, recipe = parse_arguments()
    if options.command == "list":
        print_list()
    elif options.command == "verify":
        verify(recipe)
    elif options.command == "export":
        export(options, recipe)
    else:
        from utils.store import packing

        move = getattr(packing, options.command)
        for adapters in chosen_data_types(recipe):
            print(f"{relative(adapters)}: {move(adapters)} adapters {options.command}ed")


def print_list() -> None:
    """A line for each data type: its adapters, different ones, and what they take on the disk."""
    from utils.store.folders import stored_adapters

    found = [one for place in layout.experiments() for one in layout.data_types_under(place)]
    for adapters in found:
        folders = stored_adapters(adapters)
        files = [file.stat() for folder in folders for file in folder.iterdir()]
        sizes = {file.st_ino: file.st_blocks * 512 for file in files}  # hard links count once
        counts = f"{len(folders)} adapters, {len(sizes) // 3} different"
        print(f"{relative(adapters)}: {counts}, {sum(sizes.values()) / 1e6:.1f} MB on the disk")
    if not found:
        print("there are no adapters; encode.py makes them")


def chosen_data_types(recipe: Recipe) -> list[Path]:
    """The folders of the data types that the flags select, packed or not: at least one."""
    experiment = layout.experiment_folder("offline", recipe)
    packed = {tar.with_suffix("") for tar in experiment.glob("*.tar")}
    found = {*layout.data_types_under(experiment), *packed}
    if recipe.data_type:
        found &= {layout.adapters_folder(recipe, recipe.data_type)}
    if not found:
        problem = f"there are no adapters in {relative(experiment)}"
        raise InputError(f"{problem}; run first: {encode_command(recipe)}")
    return sorted(found)


def encode_command(recipe: Recipe) -> str:
    """The command that makes the adapters of `recipe`."""
    return f"python src/encode.py {recipe.flags('model', 'data', 'adapter')}"


def verify(recipe: Recipe) -> None:
    """Print what is wrong with each adapter that cannot be used; `InputError` if there is one."""
    from utils.experiment import Experiment
    from utils.sources import SOURCES
    from utils.store import check, packing

    experiment = Experiment(recipe)
    works = SOURCES[recipe.adapters].works(experiment)
    shapes = experiment.bank().shapes(recipe.lora_rank)
    found = check.check_adapters(experiment, works, experiment.settings, shapes=shapes)
    bad = [one for one in found if one.state != check.RIGHT]
    for one in bad:
        print(f"{one.state}: {one.problem}")
    print(f"{len(found)} adapters checked, {len(bad)} of them missing, damaged or made otherwise")
    if bad:
        remedy = packing.where_packed(bad[0].folder) or f"run: {encode_command(recipe)}"
        if any(one.state == check.OTHER for one in bad):
            again = f"{encode_command(recipe)} --overwrite"
            remedy = f"give the flags they were made with, or run: {again}"
        raise InputError(f"{len(bad)} of {len(found)} adapters cannot be used; {remedy}")
    check.check_base(experiment, {one.base for one in found})


def export(options: argparse.Namespace, recipe: Recipe) -> None:
    """Write one question's merged adapter; raises `InputError` if `inference.py` would too."""
    import torch

    from utils.experiment import Experiment
    from utils.lora.bank import pad
    from utils.store.check import require_adapters
    from utils.store.folders import save_adapter
    from utils.store.merging import check_merge, open_merger

    did, output = options.question_id, options.output
    if output.exists():
        raise InputError(f"--output {relative(output)} exists already; give another folder")
    experiment = Experiment(recipe)
    if len(experiment.records) > 1:
        raise InputError(f"choose one --data_type of {', '.join(experiment.records)}")
    [(data_type, records)] = experiment.records.items()
    if did >= len(records) or not records[did]["augment"]:
        problem = f"--question_id {did}: {data_type} has no passages of such a question"
        raise InputError(f"{problem}; give another of its {len(records)} questions, from 0")
    check_merge(experiment)
    works = experiment.works(experiment.passages(data_type)[did])
    base = require_adapters(experiment, works, experiment.settings)
    merged = open_merger(experiment, experiment.bank(), data_type, base).merged(did)
    rank = len(next(iter(merged.values()))[0])
    padded = padded_rank(rank, options.pad_rank)
    alpha = exported_alpha(recipe.lora_alpha, recipe.lora_rank, padded)
    made_with = {
        **experiment.settings,
        **recipe.settings("merging"),
        "base": base,
        "question": records[did]["question"],
        "adapter": relative(layout.adapters_folder(recipe, data_type) / f"data_{did}"),
        "merged_rank": rank,
    }
    adapter, base_model = pad(merged, padded), experiment.base_model
    dtype = getattr(torch, options.save_dtype)
    save_adapter(adapter, output, alpha, base_model, made_with, dtype, replace=False)
    numbers = f"rank {rank}, filled up to {padded}, lora_alpha {alpha:g}"
    print(f'"{one_line(records[did]["question"])}": {numbers}: {relative(output)}')
    print(f"next: PeftModel.from_pretrained(model, {str(output)!r}), or a model server")


def padded_rank(rank: int, wanted: int | None) -> int:
    """The rank to fill up to. Raises `InputError` if the merged one is larger."""
    if wanted == 0:
        return rank
    ranks = SERVER_RANKS if wanted is None else (wanted,)
    if rank > ranks[-1]:
        remedy = "give a larger --pad_rank, 0 for no filling up, or a smaller --merge_topk"
        raise InputError(f"the merged adapter has rank {rank}, above {ranks[-1]}; {remedy}")
    return next(one for one in ranks if one >= rank)


def exported_alpha(alpha: float, rank: int, exported_rank: int) -> float:
    """The lora_alpha with which an adapter of `exported_rank` counts as `alpha` does at `rank`.
    Loaders divide it by r: exact for powers of two, else to one unit in the last place."""
    exported = alpha / rank * exported_rank
    return int(exported) if exported.is_integer() else exported


if __name__ == "__main__":
    run_stage(main)
