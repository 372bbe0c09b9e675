"""Command-line flags that several stages share, with the same defaults and meanings."""

import argparse
import shlex
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.arguments import new_parser, positive_integer, positive_number, seed_number
from utils.layout import experiment_folder, folder_name, training_name, warmup_folder
from utils.models import DTYPES, load_model, model_identity
from utils.prompting import PromptSet

METHODS = ("closed_book", "icl", "da_icl", "prag", "combine")
IN_PARAMETERS = ("prag", "combine")  # of these
SAVE_DTYPES = ("float32", "bfloat16", "float16")
AUGMENT_PARTS = ("rewrite", "qa")


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
    group.add_argument(
        "--device_map",
        choices=["auto"],
        help="auto: spread a model too large for one GPU over all of them (not set: one GPU)",
    )
    return group


def model_of(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that the flags of `add_model_flags` name (see `load_model`)."""
    return load_model(
        options.model_name,
        options.dtype,
        tokenizer,
        options.trust_remote_code,
        options.device_map,
    )


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
        "--seed",
        type=seed_number,
        default=0,
        help="seed of the base adapter that all passages start from",
    )
    group.add_argument(
        "--init_adapter",
        default="random",
        help="what every passage starts from: random, warmup (warmup_lora.py), or a PEFT folder",
    )
    group.add_argument(
        "--augment_parts",
        type=augment_parts,
        default="rewrite,qa",
        help="augmentation in the training prompts: rewrite,qa or rewrite or qa or none",
    )
    return group


def add_merging_flags(parser: argparse.ArgumentParser, title: str) -> None:
    """`--merge_topk`, `--merge`, `--merge_scale`: how a question's adapters become one."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--merge_topk", type=positive_integer, help="passages to merge (not set: all of them)"
    )
    group.add_argument(
        "--merge",
        choices=["sum", "base_once"],
        default="sum",
        help="sum of the adapters; base_once: the base adapter counts once, not once per passage",
    )
    group.add_argument(
        "--merge_scale", type=positive_number, default=1.0, help="factor of the merged adapter"
    )


def check_merging(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with the parser's error where the flags of `add_merging_flags` make no sense."""
    if options.merge == "base_once" and options.init_adapter == "random":
        parser.error(
            "--merge base_once needs --init_adapter: the delta of a random base is zero, "
            "so that it cannot count twice"
        )


def augment_parts(text: str) -> tuple[str, ...]:
    """The parts named in `text`, in their fixed order, for argparse: `()` for "none"."""
    parts = set() if text == "none" else set(text.split(","))
    if unknown := parts - set(AUGMENT_PARTS):
        raise argparse.ArgumentTypeError(
            f"{min(unknown)!r} is no part; use rewrite,qa or rewrite or qa or none"
        )
    return tuple(part for part in AUGMENT_PARTS if part in parts)


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
        "init_adapter": options.init_adapter,
        "augment_parts": ",".join(options.augment_parts) or "none",
    }


def adapters_of(options: argparse.Namespace, data_type: str) -> Path:
    """The folder of one data type's adapters; below it stand `data_{did}/passage_{pid}/`."""
    return _experiment(options, "offline") / folder_name(data_type)


def results_of(options: argparse.Namespace, method: str, data_type: str) -> Path:
    """The folder under `output/` that holds `config.json`, `predict.json` and `result.txt`."""
    return _experiment(options, "output") / method / folder_name(data_type)


def _experiment(options: argparse.Namespace, root: str) -> Path:
    return experiment_folder(
        root,
        options.model_name,
        options.lora_rank,
        options.lora_alpha,
        options.dataset,
        training_name(
            options.learning_rate,
            options.num_train_epochs,
            options.with_cot,
            options.init_adapter,
            options.augment_parts,
        ),
        options.augment_model or options.model_name,
    )


def init_folder(options: argparse.Namespace) -> Path | None:
    """The adapter that `--init_adapter` names; None for random, which stands in `base_weight`."""
    if options.init_adapter == "random":
        return None
    if options.init_adapter == "warmup":
        return warmup_folder(
            options.model_name, options.lora_rank, options.lora_alpha, options.with_cot
        )
    return Path(options.init_adapter)


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
        if action.dest == "augment_parts" and value is not None:
            value = ",".join(value) or "none"
        if action.dest == "help" or value in (None, False, action.default):
            continue
        words += [action.option_strings[0]] + ([] if value is True else [str(value)])
    return shlex.join(words)
