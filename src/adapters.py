r"""Look after the adapters that `encode.py` made: list, check, hand over, pack.

    python src/adapters.py list

    python src/adapters.py verify --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1

    python src/adapters.py export --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1 --question_id 0 \
        --output exported/question_0

    python src/adapters.py export --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1 --all \
        --output exported --serve http://localhost:8000     # a running vLLM (docs/servers.md)

    python src/adapters.py pack --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1      # unpack: the same flags

The flags of `encode.py` find the same adapters here. `verify` loads every adapter, compares it with
its passage and ends with code 1 if one is missing, damaged or made otherwise. `export` writes the
merged adapters of questions for peft and model servers. `pack` puts a data type's into one tar.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from utils import layout
from utils.arguments import HelpFormatter, new_parser, whole_number
from utils.files import relative
from utils.recipe import SAVE_DTYPES, SERVER_RANKS, Recipe, add_flags
from utils.running import InputError, run_stage

if TYPE_CHECKING:
    from utils.experiment import Experiment
    from utils.store.exporting import Exporter

COMMANDS = {
    "list": "what is under offline/",
    "verify": "check that every passage has its adapter, and that it is sound",
    "export": "write the merged adapters of one question or all as PEFT folders",
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
    exporting = parsers["export"].add_argument_group("exporting")
    add = exporting.add_argument
    padding = "rank of the exported adapter, filled up with zeros; 0: as it is (not set: the first"
    padding += f" of {', '.join(map(str, SERVER_RANKS))} that holds it)"
    dtype = "dtype of the exported adapter"
    which = exporting.add_mutually_exclusive_group(required=True)
    place = "N of data_N: the place of the question, or of a corpus's passage (not set: --all)"
    which.add_argument("--question_id", type=whole_number, help=place)
    every = "all questions and passages of a corpus, each into a folder {data_type}_{N}; what is "
    every += "there already stays"
    which.add_argument("--all", action="store_true", help=every)
    folder = "folder to write, which must not exist; with --all the folder of the folders"
    add("--output", type=Path, required=True, help=folder)
    loading = "address of a running vLLM, such as http://localhost:8000, which sees --output: load "
    loading += "all adapters into it, each under its folder's name (only with --all)"
    add("--serve", metavar="URL", help=loading)
    add("--pad_rank", type=whole_number, help=padding)
    add("--save_dtype", choices=SAVE_DTYPES, default="float32", help=dtype)
    options = parser.parse_args(arguments)
    recipe = Recipe.of(options)
    problem = recipe.problem()
    if options.command == "export" and options.serve is not None and not options.all:
        problem = "--serve loads what --all exports; give --all instead of --question_id"
    if problem:
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
    from utils.store.folders import stored_adapters, weights_file

    found = [one for place in layout.experiments() for one in layout.data_types_under(place)]
    for adapters in found:
        folders = stored_adapters(adapters)
        files = [file.stat() for folder in folders for file in folder.iterdir()]
        sizes = {file.st_ino: file.st_blocks * 512 for file in files}  # hard links count once
        different = len({weights_file(folder).stat().st_ino for folder in folders})
        counts = f"{len(folders)} adapters, {different} different"
        pool = sum(f.stat().st_blocks * 512 for f in layout.pool_folder(adapters.parent).glob("*"))
        size = f"{sum(sizes.values()) / 1e6:.1f} MB on the disk"
        size += f", beside a pool of {pool / 1e6:.1f} MB" if pool else ""
        print(f"{relative(adapters)}: {counts}, {size}")
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
    from utils.store import check, moved, packing

    experiment = Experiment(recipe)
    works = SOURCES[recipe.adapters].works(experiment)
    shapes = experiment.bank().shapes(recipe.lora_rank)
    found = check.check_adapters(experiment, works, experiment.settings, shapes=shapes)
    moved.mark_moved(experiment, works, found, experiment.settings)
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
    """Write merged adapters; raises `InputError` if `inference.py` would too."""
    from utils.experiment import Experiment
    from utils.sources import SOURCES
    from utils.store.check import require_adapters
    from utils.store.exporting import Exporter
    from utils.store.merging import check_merge

    did, output = options.question_id, options.output
    if did is not None and output.exists():
        raise InputError(f"--output {relative(output)} exists already; give another folder")
    experiment = Experiment(recipe)
    if did is None:
        works = SOURCES[recipe.adapters].works(experiment)
    else:
        data_type = data_type_with(experiment, did)
        works = experiment.works(experiment.passages(data_type)[did])
    check_merge(experiment)
    base = require_adapters(experiment, works, experiment.settings)
    exporter = Exporter(experiment, base, options)
    if did is None:
        export_all(exporter, options)
        return
    print(f"{exporter.export(data_type, did, output)}: {relative(output)}")
    print(f"next: PeftModel.from_pretrained(model, {str(output)!r}), or a model server")


def data_type_with(experiment: "Experiment", did: int) -> str:
    """The only data type; `InputError` if there are several, or if it has no passages of `did`."""
    if len(experiment.records) > 1:
        raise InputError(f"choose one --data_type of {', '.join(experiment.records)}")
    [(data_type, records)] = experiment.records.items()
    if did >= len(records) or not records[did]["augment"]:
        what = "question" if records[0]["question"] else "passage"
        problem = f"--question_id {did}: {data_type} has no passages of such a {what}"
        raise InputError(f"{problem}; give another of its {len(records)} {what}s, from 0")
    return data_type


def export_all(exporter: "Exporter", options: argparse.Namespace) -> None:
    """Write every question's adapter, and load them into the server that `--serve` names."""
    from tqdm import tqdm

    from utils.store.vllm import VllmServer

    rank, names = exporter.largest_rank(), exporter.names()
    server = None
    if options.serve is not None:
        server = VllmServer(options.serve, rank, exporter.experiment.base_model)
    folders = {name: options.output / name for name in names}
    for name, (data_type, did) in tqdm(names.items(), "export", unit="adapter"):
        exporter.export(data_type, did, folders[name])
    print(f"{len(names)} adapters, rank {rank} at most: {relative(options.output)}")
    if server:
        print(server.load(folders))
    first = next(iter(names))
    print(f"next: ask a model server for the model {first} and so on, in token ids")


if __name__ == "__main__":
    run_stage(main)
