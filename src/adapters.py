r"""Look after the adapters that `encode.py` made: count, check, hand over, pack.

    python src/adapters.py list

    python src/adapters.py verify --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1 --remove_bad

    python src/adapters.py export --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1 --question_id 0 \
        --output exported/question_0

    python src/adapters.py pack --model_name data/demo/demo-model --prompts demo --dataset demo \
        --data_type test --learning_rate 4e-3 --num_train_epochs 1      # unpack: the same flags

The flags of `encode.py` and `inference.py` find the same adapters here. `verify` loads every
adapter, compares it with its passage and ends with code 1 where one is bad, foreign or missing;
`--remove_bad` deletes it, so that `encode.py` makes it again. `export` writes one question's merged
adapter as a folder that peft and model servers load. `pack` puts a data type's adapters into two
files; all scripts read them there too.
"""

import argparse
import json
from pathlib import Path

import torch

from utils.arguments import HelpFormatter, new_parser, whole_number
from utils.augmentation.records import read_sample
from utils.files import relative
from utils.flags import (
    SAVE_DTYPES,
    adapters_of,
    add_data_flags,
    add_merging_flags,
    add_model_flags,
    add_training_flags,
    check_merging,
    shared_flags,
    training_settings,
)
from utils.lora.bank import LoraBank, pad
from utils.models import load_skeleton, load_tokenizer, resolve_model
from utils.prompting import PromptEncoder, load_prompts
from utils.running import InputError, run_stage
from utils.store.folders import save_adapter
from utils.store.inventory import print_inventory
from utils.store.links import data_types_under
from utils.store.merging import Merger, check_adapters
from utils.store.packing import pack, unpack
from utils.store.verifying import verify

SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those of vLLM's --max-lora-rank
COMMANDS = {
    "list": "what stands under offline/",
    "verify": "check that every passage has its adapter, and that it is sound",
    "export": "write one question's merged adapter as a PEFT folder",
    "pack": "put a data type's adapters into two files",
    "unpack": "make the folders of packed adapters again",
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {
        name: commands.add_parser(
            name,
            help=meaning,
            description=f"{meaning[0].upper()}{meaning[1:]}.",
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        for name, meaning in COMMANDS.items()
    }
    for name in ("verify", "export", "pack", "unpack"):
        add_model_flags(parsers[name])
        add_data_flags(parsers[name])
        add_training_flags(parsers[name])
    parsers["verify"].add_argument(
        "--remove_bad",
        action="store_true",
        help="delete bad and foreign adapters, encode.py makes them again",
    )
    add_merging_flags(parsers["export"], "merging (as in inference.py)")
    exporting = parsers["export"].add_argument_group("exporting")
    exporting.add_argument(
        "--question_id", type=whole_number, required=True, help="N of data_N: the question's place"
    )
    exporting.add_argument(
        "--output", type=Path, required=True, help="folder to write, which must not exist"
    )
    exporting.add_argument(
        "--pad_rank",
        type=whole_number,
        help="rank of the exported adapter, filled up with zeros; 0: as it is (not set: the first "
        f"of {', '.join(map(str, SERVER_RANKS))} that holds it)",
    )
    exporting.add_argument(
        "--save_dtype", choices=SAVE_DTYPES, default="float32", help="dtype of the exported adapter"
    )
    options = parser.parse_args(arguments)
    if options.command == "export":
        check_merging(parsers["export"], options)
    return options


def main() -> None:
    """Do what the command says."""
    options = parse_arguments()
    if options.command == "list":
        print_inventory()
    elif options.command == "verify":
        verify(options, chosen_data_types(options))
    elif options.command == "export":
        export(options)
    else:
        move = pack if options.command == "pack" else unpack
        for adapters in chosen_data_types(options):
            print(f"{relative(adapters)}: {move(adapters)} adapters {options.command}ed")


def chosen_data_types(options: argparse.Namespace) -> list[Path]:
    """The folders of the data types that the flags select.

    Raises `InputError` where none has adapters.
    """
    experiment = adapters_of(options, "total").parent
    found = data_types_under(experiment)
    if options.data_type:
        found = [folder for folder in found if folder == adapters_of(options, options.data_type)]
    if not found:
        where = adapters_of(options, options.data_type) if options.data_type else experiment
        raise InputError(
            f"there are no adapters in {relative(where)}; "
            f"run first: python src/encode.py {shared_flags(options)}"
        )
    return found


def export(options: argparse.Namespace) -> None:
    """Write one question's merged adapter; raises `InputError` where `inference.py` would too."""
    if options.output.exists():
        raise InputError(f"--output {relative(options.output)} exists already; give another folder")
    augment_model = options.augment_model or options.model_name
    prompts = load_prompts(options.prompts, options.dataset, options.with_cot)
    records = read_sample(options.dataset, options.data_type, augment_model, options.sample)
    if len(records) > 1:
        raise InputError(f"choose one --data_type of {', '.join(records)}")
    [(data_type, of_type)] = records.items()
    did = options.question_id
    if did >= len(of_type) or not of_type[did]["augment"]:
        raise InputError(
            f"--question_id {did}: {data_type} has no passages of such a question, but "
            f"{len(of_type)} questions, counted from 0; give one of them"
        )
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    encoder = PromptEncoder(tokenizer, prompts, options.with_cot, options.max_length)
    settings = training_settings(options, prompts)
    adapters = adapters_of(options, data_type)
    base = check_adapters(of_type, adapters, settings, encoder, options, only=did)
    model = load_skeleton(options.model_name, options.trust_remote_code)
    bank = LoraBank(model, options.lora_rank, options.lora_alpha)
    merged = Merger(bank, options, adapters, base).merged(did, of_type)
    rank = len(next(iter(merged.values()))[0])
    padded = padded_rank(rank, options.pad_rank)
    made_with = {
        **settings,
        "base": base,
        "question": of_type[did]["question"],
        "adapter": relative(adapters / f"data_{did}"),
        "merge": options.merge,
        "merge_topk": options.merge_topk,
        "merge_scale": options.merge_scale,
        "merged_rank": rank,
    }
    alpha = exported_alpha(options.lora_alpha, options.lora_rank, padded)
    save_adapter(
        pad(merged, padded),
        options.output,
        padded,
        alpha,
        resolve_model(options.model_name),
        made_with,
        getattr(torch, options.save_dtype),
        replace=False,
    )
    print(
        f"{json.dumps(of_type[did]['question'], ensure_ascii=False)}: rank {rank}, filled up to "
        f"{padded}, lora_alpha {alpha:g}: {relative(options.output)}"
    )
    print(f"next: PeftModel.from_pretrained(model, {str(options.output)!r}), or a model server")


def padded_rank(rank: int, wanted: int | None) -> int:
    """The rank to fill up to. Raises `InputError` where the merged one is larger."""
    if wanted == 0:
        return rank
    fitting = [r for r in (SERVER_RANKS if wanted is None else (wanted,)) if r >= rank]
    if not fitting:
        most = SERVER_RANKS[-1] if wanted is None else wanted
        raise InputError(
            f"the merged adapter has rank {rank}, above {most}; give a larger --pad_rank, 0 for "
            "no filling up, or a smaller --merge_topk"
        )
    return fitting[0]


def exported_alpha(alpha: float, rank: int, exported_rank: int) -> float:
    """The lora_alpha with which an adapter of `exported_rank` counts as `alpha` does at `rank`.

    Loaders compute lora_alpha / r. That is the trained scaling to the last bit for every power of
    two, and at least to one unit in the last place for another rank.
    """
    exported = alpha / rank * exported_rank
    return int(exported) if exported == int(exported) else exported


if __name__ == "__main__":
    run_stage(main)
