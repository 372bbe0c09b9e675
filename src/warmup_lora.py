r"""The warm-up: train a base adapter on questions and answers, from which passages can start.

    python src/warmup_lora.py --model_name data/demo/demo-model --prompts demo \
        --data data_aug/warmup/demo/direct.json --learning_rate 2e-3

    python src/warmup_lora.py --model_name llama3.2-1b-instruct --per_device_train_batch_size 1 \
        --num_train_epochs 1 --learning_rate 3e-4 --lora_rank 2 --lora_alpha 32 \
        --block_size 3000 --with_cot

Reads what `get_warmup_data.py` wrote and writes `offline/{model}/rank=…_alpha=…/warmup_direct/`
(with `--with_cot` `warmup_cot/`): a PEFT folder with `questions.json` (what it was trained on),
`loss.json` and `loss.png`. Started again after a stop, it goes on from its last checkpoint.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from utils import warmup
from utils.arguments import new_parser, positive_integer
from utils.files import hash_json, relative, write_json, writing_folder
from utils.journal import refuse_difference
from utils.layout import warmup_folder
from utils.prompting import PromptEncoder, load_prompts
from utils.recipe import Recipe, add_flags
from utils.running import run_stage

# the settings of `Recipe` that this adapter is made with
SETTINGS = ("with_cot", "lora_rank", "lora_alpha", "learning_rate", "num_train_epochs")
SETTINGS += ("per_device_train_batch_size", "seed")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_flags(parser, "model")
    add = parser.add_argument_group("training").add_argument
    add("--data", type=Path, help="file of the records (not set: the one of get_warmup_data.py)")
    for setting in fields(Recipe):
        if setting.name in SETTINGS:
            add(f"--{setting.name}", **setting.metadata["flag"])
    add("--block_size", type=positive_integer, default=3000, help="tokens of a prompt at most")
    add = parser.add_argument_group("running").add_argument
    add("--save_steps", type=positive_integer, default=200, help="steps between two checkpoints")
    add("--overwrite", action="store_true", help="train an adapter again that exists already")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace, records: list[dict], tokenizer: Any) -> tuple:
    """The records as examples, and what the adapter is made with (`training_config.json`)."""
    from utils.model_files import model_identity
    from utils.models import dtype_name

    with_cot = options.with_cot
    names = sorted({record["dataset"] if with_cot else "" for record in records})
    prompts = {name: load_prompts(options.prompts, name, with_cot) for name in names}
    encoders = {n: PromptEncoder(tokenizer, prompts[n], with_cot, 1 << 30) for n in names}
    examples = warmup.encode_records(records, encoders, with_cot, options.block_size)
    return examples, {
        "model": model_identity(options.model_name),
        "prompts": " ".join(one.fingerprint for one in prompts.values()),
        **{name: getattr(options, name) for name in SETTINGS},
        "block_size": options.block_size,
        "dtype": dtype_name(options.dtype),
        "datasets": sorted({str(record.get("dataset")) for record in records}),
        "records": len(records),
        "data_file": hash_json(records),
        "data": hash_json([example.ids for example in examples]),
    }


def save(
    folder: Path, adapter: dict, losses: list[float], records: list[dict], base: str, settings: dict
) -> None:
    """Write the adapter of the model `base`, its losses and its questions, in one step."""
    from matplotlib.figure import Figure

    from utils.store.folders import save_adapter

    curve, figure = warmup.smoothed(losses), Figure(figsize=(6.4, 3.6), layout="tight")
    axis, x = figure.subplots(), range(1, len(losses) + 1)
    axis.plot(x, losses, color="#9aa5b1", linewidth=0.7, label="each step")
    axis.plot(x, curve, color="#e4763f", label=f"mean over the last {warmup.SMOOTHED_STEPS} steps")
    axis.set(xlabel="optimiser step", ylabel="loss per token (nats)", ylim=(0, None))
    axis.legend(frameon=False)
    values = {"smoothed_over": warmup.SMOOTHED_STEPS, "loss": losses, "smoothed": curve}
    questions = sorted({warmup.question_key(record["question"]) for record in records})
    with writing_folder(folder) as temporary:
        save_adapter(adapter, temporary, settings["lora_alpha"], base, settings)
        write_json(temporary / "loss.json", values)
        write_json(temporary / warmup.QUESTIONS_FILE, questions)  # so that no stage evaluates them
        figure.savefig(temporary / "loss.png", dpi=160)
    done = f"{len(records)} records, {len(losses)} steps, loss {curve[-1]:.3f} in the end"
    print(f"{relative(folder)}: {done}")


def main() -> None:
    """Check, load, train, save."""
    options = parse_arguments()
    from utils.lora.bank import LoraBank
    from utils.lora.examples import Steps
    from utils.lora.objectives import lm
    from utils.lora.training import train_adapters
    from utils.model_files import resolve_model
    from utils.models import load_model, load_tokenizer
    from utils.processes import refuse_launcher
    from utils.store.base import open_base_adapter
    from utils.store.checkpoint import Checkpoint
    from utils.store.folders import fingerprint, read_training

    refuse_launcher("warmup_lora.py")

    # 1. Check everything that needs no model
    name, with_cot, trusted = options.model_name, options.with_cot, options.trust_remote_code
    base_model = resolve_model(name)
    data = options.data or warmup.warmup_file(None, name if with_cot else None)
    records = warmup.read_warmup_data(data, with_cot)
    tokenizer = load_tokenizer(name, trusted)
    examples, settings = prepare(options, records, tokenizer)
    folder = warmup_folder(name, options.lora_rank, options.lora_alpha, with_cot)
    unfinished = folder.with_name(f".{folder.name}.checkpoint.safetensors")
    if not options.overwrite and (made_with := read_training(folder)):
        made_with.pop("base", None)
        remedy = "use the same settings, or --overwrite to train it again"
        refuse_difference(f"the adapter {relative(folder)}", made_with, settings, remedy)
        unfinished.unlink(missing_ok=True)  # a kill may have come just before its removal
        print(f"{relative(folder)} exists already")
        return

    # 2. Load, train, save
    model = load_model(name, options.dtype, tokenizer, trusted, options.device_map)
    bank = LoraBank(model, options.lora_rank, options.lora_alpha)
    base = open_base_adapter(bank, folder.with_name("base_weight"), base_model, options.seed)
    settings["base"] = fingerprint(base)
    batch_size = options.per_device_train_batch_size
    steps = Steps(examples, batch_size, options.num_train_epochs, options.seed)
    old = [folder] if options.overwrite else []
    point = Checkpoint(unfinished, settings, options.save_steps, len(steps), old)
    more = (options.learning_rate, point.resume, point.after_step)
    [adapter] = train_adapters(bank, base, [steps], lm, *more)
    point.bar.close()
    save(folder, adapter, point.losses, records, base_model, settings)
    unfinished.unlink(missing_ok=True)
    cot = " and --with_cot" if with_cot else ""
    print(f"next: python src/encode.py --init_adapter warmup with this model, rank and alpha{cot}")


if __name__ == "__main__":
    run_stage(main)
