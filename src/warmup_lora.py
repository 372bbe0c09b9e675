r"""The warm-up: train a base adapter on questions and answers, from which passages can start.

    python src/warmup_lora.py --model_name data/demo/demo-model --prompts demo \
        --data data_aug/warmup/demo/direct.json --learning_rate 2e-3

    python src/warmup_lora.py --model_name llama3.2-1b-instruct --per_device_train_batch_size 1 \
        --num_train_epochs 1 --learning_rate 3e-4 --lora_rank 2 --lora_alpha 32 \
        --block_size 3000 --with_cot

Reads what `get_warmup_data.py` wrote and writes
`offline/{model}/rank=…_alpha=…/warmup_direct/` (with `--with_cot` `warmup_cot/`): a PEFT folder
with `training_config.json`, `questions.json` (what it was trained on), `loss.json` and `loss.png`.
Started again after a stop, it goes on from its last checkpoint.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from utils.arguments import new_parser, positive_integer, positive_number, seed_number
from utils.files import (
    hash_json,
    relative,
    remove_folder,
    write_json,
    writing_file,
    writing_folder,
)
from utils.flags import add_model_flags, model_of
from utils.journal import refuse_difference
from utils.layout import folder_name, rank_folder, warmup_folder
from utils.lora.bank import Adapter, LoraBank
from utils.models import (
    dtype_name,
    load_tokenizer,
    model_identity,
    resolve_model,
)
from utils.processes import refuse_launcher
from utils.prompting import load_prompts
from utils.running import InputError, run_stage
from utils.store.folders import fingerprint, open_base_adapter, read_training, save_adapter
from utils.warmup import (
    QUESTIONS_FILE,
    SMOOTHED_STEPS,
    encode_records,
    question_key,
    read_warmup_data,
    smoothed,
    steps_of,
    warmup_file,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser(__doc__)
    add_model_flags(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, help="file of the records (not set: the one of get_warmup_data.py)"
    )
    data.add_argument(
        "--with_cot", action="store_true", help="answers with their reasoning (chain of thought)"
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--per_device_train_batch_size",
        type=positive_integer,
        default=1,
        help="prompts per optimiser step",
    )
    training.add_argument(
        "--num_train_epochs", type=positive_integer, default=1, help="passes over the records"
    )
    training.add_argument(
        "--learning_rate", type=positive_number, default=3e-4, help="AdamW's constant rate"
    )
    training.add_argument(
        "--block_size", type=positive_integer, default=3000, help="tokens of a prompt at most"
    )
    training.add_argument(
        "--lora_rank", type=positive_integer, default=2, help="rank of the adapter"
    )
    training.add_argument(
        "--lora_alpha", type=positive_number, default=32, help="the adapter counts alpha / rank"
    )
    training.add_argument(
        "--seed", type=seed_number, default=0, help="seed of base_weight and of the records' order"
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--save_steps", type=positive_integer, default=200, help="steps between two checkpoints"
    )
    running.add_argument(
        "--overwrite", action="store_true", help="train anew an adapter that stands there already"
    )
    return parser.parse_args(arguments)


def mean_loss(model: torch.nn.Module, batch: list[list[int]]) -> torch.Tensor:
    """The mean loss over all label tokens of the prompts in `batch`: all but each one's first.

    Padding stands on the right, where causal attention keeps it out of every label's sight.
    """
    device = next(model.parameters()).device
    length = max(map(len, batch))
    ids = torch.zeros((len(batch), length), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, prompt in enumerate(batch):
        ids[row, : len(prompt)] = labels[row, : len(prompt)] = torch.tensor(prompt)
    logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().to(device))


class Checkpoint:
    """The state of a training run in one safetensors file: A, B, AdamW's moments, all losses.

    `settings` say which run it belongs to.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings

    def save(
        self,
        parameters: list[torch.Tensor],
        optimizer: torch.optim.Optimizer,
        losses: list[float],
    ) -> None:
        """Write the state after `len(losses)` steps, whole or not at all."""
        tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
        for index, parameter in enumerate(parameters):
            tensors[f"{index}.value"] = parameter.detach().cpu().contiguous()
            for name, moment in optimizer.state[parameter].items():
                tensors[f"{index}.{name}"] = moment.cpu().contiguous()
        with writing_file(self.path) as temporary:
            save_file(tensors, temporary, metadata={"settings": json.dumps(self.settings)})

    def restore(
        self, parameters: list[torch.Tensor], optimizer: torch.optim.Optimizer
    ) -> list[float]:
        """Put the saved state in place; returns the losses so far, none without a checkpoint.

        Raises `InputError` where the checkpoint belongs to another run or is damaged.
        """
        if not self.path.exists():
            return []
        try:
            with safe_open(self.path, framework="pt") as file:
                made_with = json.loads((file.metadata() or {})["settings"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"the checkpoint {relative(self.path)} cannot be read ({error}); use --overwrite"
            ) from None
        refuse_difference(
            f"the unfinished training in {relative(self.path)}",
            made_with,
            self.settings,
            "use the same settings to go on, or --overwrite to start anew",
        )
        state = {}
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"{index}.value"])
                names = ("step", "exp_avg", "exp_avg_sq")
                state[index] = {name: tensors[f"{index}.{name}"] for name in names}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        return tensors["losses"].tolist()


def train(
    bank: LoraBank,
    base: Adapter,
    prompts: list[list[int]],
    steps: list[list[int]],
    learning_rate: float,
    checkpoint: Checkpoint,
    save_steps: int,
) -> tuple[Adapter, list[float]]:
    """One adapter started from `base`, in its dtype, and the loss of each step.

    Step i takes the prompts (token ids) with the indices `steps[i]`; all tokens are labels, the
    optimiser is AdamW with a constant rate. Raises `InputError` where the loss is not finite.
    """
    device = next(bank.model.parameters()).device
    adapter = {
        name: tuple(part.to(device, copy=True)[None].requires_grad_() for part in pair)
        for name, pair in base.items()
    }
    parameters = [part for pair in adapter.values() for part in pair]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    losses = checkpoint.restore(parameters, optimizer)
    bank.set(adapter)
    bar = tqdm(total=len(steps), initial=len(losses), unit="step", desc="warm-up")
    for number, step in enumerate(steps[len(losses) :], start=len(losses) + 1):
        optimizer.zero_grad()
        loss = mean_loss(bank.model, [prompts[index] for index in step])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the loss of step {number} is {losses[-1]}; start anew with a smaller "
                "--learning_rate and --overwrite, or with --dtype float32"
            )
        if number % save_steps == 0 and number < len(steps):
            checkpoint.save(parameters, optimizer, losses)
        bar.set_postfix(loss=f"{smoothed(losses[-SMOOTHED_STEPS:])[-1]:.3f}", refresh=False)
        bar.update()
    bar.close()
    bank.clear()
    return {
        name: tuple(part.detach()[0].cpu() for part in pair) for name, pair in adapter.items()
    }, losses


def plot(losses: list[float], title: str, path: Path) -> None:
    """The loss of each step and the smoothed one."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    steps = range(1, len(losses) + 1)
    axis.plot(steps, losses, color="#9aa5b1", linewidth=0.7, label="each step")
    axis.plot(
        steps, smoothed(losses), color="#e4763f", label=f"mean over the last {SMOOTHED_STEPS} steps"
    )
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("loss per token (nats)")
    axis.set_ylim(bottom=0)
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with writing_file(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png")
    plt.close(figure)


def main() -> None:
    """Check, load, train, save."""
    options = parse_arguments()
    refuse_launcher("warmup_lora.py")

    # 1. Check everything that needs no model
    base_model = resolve_model(options.model_name)
    cot_model = options.model_name if options.with_cot else None
    data = options.data or warmup_file(None, cot_model)
    records = read_warmup_data(data, options.with_cot)
    names = sorted({record["dataset"] if options.with_cot else "" for record in records})
    prompts = {name: load_prompts(options.prompts, name, options.with_cot) for name in names}
    tokenizer = load_tokenizer(options.model_name, options.trust_remote_code)
    encoded = encode_records(records, prompts, tokenizer, options.with_cot, options.block_size)
    settings = {
        "model": model_identity(options.model_name),
        "prompts": " ".join(prompts[name].fingerprint for name in names),
        "with_cot": options.with_cot,
        "lora_rank": options.lora_rank,
        "lora_alpha": options.lora_alpha,
        "learning_rate": options.learning_rate,
        "num_train_epochs": options.num_train_epochs,
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "block_size": options.block_size,
        "seed": options.seed,
        "dtype": dtype_name(options.dtype),
        "datasets": sorted({str(record.get("dataset")) for record in records}),
        "records": len(records),
        "data_file": hash_json(records),
        "data": hash_json(encoded),
    }
    folder = warmup_folder(
        options.model_name, options.lora_rank, options.lora_alpha, options.with_cot
    )
    checkpoint_file = folder.with_name(f".{folder.name}.checkpoint.safetensors")
    if not options.overwrite and (made_with := read_training(folder)) is not None:
        refuse_difference(
            f"the adapter {relative(folder)}",
            {name: made_with.get(name) for name in settings},
            settings,
            "use the settings it was made with, or --overwrite to train anew",
        )
        checkpoint_file.unlink(missing_ok=True)  # a kill may have come just before its removal
        print(f"{relative(folder)} stands already")
        return

    # 2. Load
    model = model_of(options, tokenizer)
    bank = LoraBank(model, options.lora_rank, options.lora_alpha)
    base_folder = rank_folder(options.model_name, options.lora_rank, options.lora_alpha)
    base = open_base_adapter(bank, base_folder / "base_weight", base_model, options.seed)
    settings["base"] = fingerprint(base)

    # 3. Train
    if options.overwrite:  # remove what stands, so that a stopped run goes on without --overwrite
        checkpoint_file.unlink(missing_ok=True)
        remove_folder(folder)
    steps = steps_of(
        len(encoded), options.num_train_epochs, options.per_device_train_batch_size, options.seed
    )
    adapter, losses = train(
        bank,
        base,
        encoded,
        steps,
        options.learning_rate,
        Checkpoint(checkpoint_file, settings),
        options.save_steps,
    )

    # 4. Save; the inner folder is written first, then the outer one appears with all files
    kind = "CoT" if options.with_cot else "direct"
    with writing_folder(folder) as temporary:
        save_adapter(
            adapter,
            temporary,
            options.lora_rank,
            options.lora_alpha,
            base_model,
            settings,
        )
        write_json(
            temporary / "loss.json",
            {"smoothed_over": SMOOTHED_STEPS, "loss": losses, "smoothed": smoothed(losses)},
        )
        questions = sorted({question_key(record["question"]) for record in records})
        write_json(temporary / QUESTIONS_FILE, questions)  # so that no stage evaluates them
        title = f"Warm-up of {folder_name(options.model_name)}, {kind}, {len(records)} records"
        plot(losses, title, temporary / "loss.png")
    checkpoint_file.unlink(missing_ok=True)
    few = min(SMOOTHED_STEPS, len(losses))
    print(
        f"{relative(folder)}: {len(records)} records, {len(losses)} steps, loss "
        f"{math.fsum(losses[:few]) / few:.3f} over the first {few}, "
        f"{math.fsum(losses[-few:]) / few:.3f} over the last {few}"
    )
    print(
        "next: python src/encode.py --init_adapter warmup with this model, rank and alpha"
        + (" and --with_cot" if options.with_cot else "")
    )


if __name__ == "__main__":
    run_stage(main)
