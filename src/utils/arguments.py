"""Command-line flags that several stages share, with the same defaults and meanings."""

import argparse
import shlex
from pathlib import Path

from utils.models import DTYPES, model_identity
from utils.paths import adapters_folder, folder_name
from utils.prompting import PromptSet


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and a stage's docstring with its line breaks."""


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose `--help` begins with the stage's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )


def add_model_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`--model_name`, `--dtype`, `--prompts`, `--trust_remote_code`."""
    group = parser.add_argument_group("model and prompts")
    group.add_argument(
        "--model_name",
        required=True,
        help="short name of configs/models.json, a model folder, or a hub id",
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    group.add_argument(
        "--prompts", default="default", help="prompt set: a name in src/prompts/ or a .json file"
    )
    group.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run code that a model brings along (only for models you trust)",
    )
    return group


def add_data_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """`--dataset`, `--data_type`, `--sample`."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        required=True,
        help="2wikimultihopqa, hotpotqa, popqa, complexwebquestions, or a name of your own",
    )
    group.add_argument("--data_type", help="one data type only (not set: all of the data set)")
    group.add_argument(
        "--sample", type=int, default=-1, help="first N questions of each data type (-1: all)"
    )
    return group


def add_training_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What made the adapters: `encode.py` trains with it, `inference.py` finds them by it."""
    group = parser.add_argument_group("adapters (the same in encode.py and inference.py)")
    group.add_argument(
        "--augment_model", help="model that wrote the augmentation (not set: --model_name)"
    )
    group.add_argument(
        "--with_cot", action="store_true", help="answers with their reasoning (chain of thought)"
    )
    group.add_argument(
        "--per_device_train_batch_size",
        type=positive_integer,
        default=1,
        help="prompts per optimiser step of one adapter",
    )
    group.add_argument(
        "--num_train_epochs", type=positive_integer, default=1, help="passes over the prompts"
    )
    group.add_argument(
        "--learning_rate", type=positive_number, default=3e-4, help="AdamW's constant rate"
    )
    group.add_argument("--lora_rank", type=positive_integer, default=2, help="rank of an adapter")
    group.add_argument(
        "--lora_alpha", type=positive_number, default=32, help="adapters count alpha / rank"
    )
    group.add_argument(
        "--max_length",
        type=positive_integer,
        default=3000,
        help="tokens of a training prompt; a longer one has its passage shortened",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of the base adapter that all passages start from"
    )
    return group


def positive_integer(text: str) -> int:
    """An integer above 0, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def training_settings(options: argparse.Namespace, prompts: PromptSet) -> dict:
    """What an adapter is made with, apart from its data: the flags of `add_training_flags`."""
    return {
        "model": model_identity(options.model_name),
        "augment_model": folder_name(options.augment_model or options.model_name),
        "prompts": prompts.fingerprint,
        "with_cot": options.with_cot,
        "lora_rank": options.lora_rank,
        "lora_alpha": options.lora_alpha,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "max_length": options.max_length,
        "seed": options.seed,
    }


def adapters_of(options: argparse.Namespace, data_type: str) -> Path:
    """The folder of the adapters that the flags name, for one data type."""
    return adapters_folder(
        options.model_name,
        options.lora_rank,
        options.lora_alpha,
        options.dataset,
        options.learning_rate,
        options.num_train_epochs,
        options.with_cot,
        options.augment_model or options.model_name,
        data_type,
    )


def shared_flags(options: argparse.Namespace, training: bool = True) -> str:
    """The flags that the next stage needs too and that differ from its defaults, as typed.

    Without `training` those of model and data alone, as `augment.py` has them.
    """
    parser = new_parser("")
    for add in (add_model_flags, add_data_flags, *([add_training_flags] if training else [])):
        add(parser)
    words = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if action.dest == "help" or value in (None, False, action.default):
            continue
        words += [action.option_strings[0]] + ([] if value is True else [str(value)])
    return shlex.join(words)
