"""Train the demo model: a small Llama with a chat template, from scratch, on an endless stream.

    torchrun --nproc_per_node 2 data/demo/build/train_model.py                  # 2 CPU cores
    python data/demo/build/train_model.py --steps 40 --work /tmp/work --output /tmp/model   # a try

The work folder holds a checkpoint (safetensors only); the same command goes on from it. Matrices
are trained with Muon, the rest with AdamW. The learning rate is constant, then falls to zero over
the last `--decay` of the steps; until then `--steps` can still be changed. Documents are a function
of seed, step and process, so a resumed run sees what an undisturbed one sees.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as distributed
from fast_llama import (
    WeightedCrossEntropy,
    attention_mask,
    final_hidden_states,
    rotary_tables,
)
from make_tokenizer import MODEL_FOLDER
from packing import TASKS, pack
from safetensors.torch import load_file, save_file
from training_data import documents_of_step
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_argument_group("model")
    size.add_argument("--hidden_size", type=int, default=320)
    size.add_argument("--layers", type=int, default=5)
    size.add_argument("--heads", type=int, default=5)
    size.add_argument("--intermediate_size", type=int, default=896)
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, default=4600, help="optimiser steps (default 4600)")
    training.add_argument(
        "--decay", type=float, default=0.4, help="share of steps with falling rate (default 0.4)"
    )
    training.add_argument("--rows", type=int, default=24, help="rows per process and step")
    training.add_argument("--length", type=int, default=320, help="tokens of a row")
    training.add_argument("--matrix_rate", type=float, default=0.02, help="Muon's learning rate")
    training.add_argument("--other_rate", type=float, default=4e-3, help="AdamW's learning rate")
    training.add_argument("--seed", type=int, default=5)
    training.add_argument("--no_compile", action="store_true", help="do without torch.compile")
    files = parser.add_argument_group("files")
    files.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    files.add_argument("--output", type=Path, default=MODEL_FOLDER)
    files.add_argument("--save_every", type=int, default=100, help="steps between checkpoints")
    files.add_argument("--keep_every", type=int, default=0, help="steps between models to keep")
    return parser.parse_args()


def build_model(arguments: argparse.Namespace, vocabulary_size: int) -> LlamaForCausalLM:
    """A Llama whose attention starts near "look for the same token and copy it".

    Queries and keys share half their weights and values pass through almost unchanged ("mimetic"
    initialisation, arXiv:2305.09828); without it copying appears much later.
    """
    torch.manual_seed(arguments.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=arguments.hidden_size,
            intermediate_size=arguments.intermediate_size,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.heads,
            num_key_value_heads=arguments.heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                spread = 0.15 if "embed" in name else 1 / math.sqrt(parameter.shape[1])
                parameter.normal_(std=spread)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            attention = layer.self_attn
            torch.nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(0.15 * attention.v_proj.weight.T)
            attention.k_proj.weight.mul_(0.5).add_(0.5 * attention.q_proj.weight)
    return model


def save_checkpoint(path: Path, step: int, model: torch.nn.Module, optimizers: list) -> None:
    """Parameters and optimiser states as one safetensors file, by rename."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": v for k, v in state.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path.with_suffix(".tmp"), metadata={"step": str(step)})
    os.replace(path.with_suffix(".tmp"), path)
    path.with_name("step.json").write_text(json.dumps({"step": step}))


def load_checkpoint(path: Path, model: torch.nn.Module, optimizers: list) -> int:
    """Restore what `save_checkpoint` wrote; returns the steps done."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimizer in enumerate(optimizers):
        state_dict = optimizer.state_dict()
        for name, tensor in tensors.items():
            kind, *place = name.split(".")
            if kind == "optimizer" and int(place[0]) == number:
                state_dict["state"].setdefault(int(place[1]), {})[place[2]] = tensor
        optimizer.load_state_dict(state_dict)
    return json.loads(path.with_name("step.json").read_text())["step"]


def rate_at(step: int, steps: int, decay: float) -> float:
    """The factor of the learning rates: a short rise, constant, then linear to zero."""
    return min(1.0, (step + 1) / 20) * min(1.0, (1 - step / steps) / decay)


def average_gradients(parameters: list[torch.nn.Parameter], processes: int) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [parameter.grad for parameter in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Save in bfloat16, half the size; `transformers` widens it on loading if asked to."""
    tensors = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embedding
    }
    model.save_pretrained(folder, state_dict=tensors)


def main() -> None:
    """Train, log, save."""
    arguments = parse_arguments()
    processes, process = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes > 1:
        distributed.init_process_group("gloo")
        torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    model = build_model(arguments, len(tokenizer))
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    rates = (arguments.matrix_rate, arguments.other_rate)
    optimizers = [
        torch.optim.Muon(matrices, lr=rates[0], weight_decay=0.01),
        torch.optim.AdamW(others, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint, first = arguments.work / "checkpoint.safetensors", 0
    if checkpoint.exists():
        first = load_checkpoint(checkpoint, model, optimizers)
    forward = final_hidden_states if arguments.no_compile else torch.compile(final_hidden_states)
    tables = rotary_tables(arguments.length, model.config.head_dim, 10000.0)

    log = torch.zeros(len(TASKS), 3)  # of each task's answer tokens: number, loss, right
    tokens, started = 0, time.time()
    for step in range(first, arguments.steps):
        scale = rate_at(step, arguments.steps, arguments.decay)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        documents = documents_of_step(step, process, arguments.seed)
        batch = pack(documents, tokenizer, arguments.rows, arguments.length)
        hidden = forward(model, batch.ids, attention_mask(batch.documents), *tables)
        weights = batch.weights.flatten() / batch.weights.sum()
        loss, losses, right = WeightedCrossEntropy.apply(
            hidden.flatten(0, 1), model.model.embed_tokens.weight, batch.targets.flatten(), weights
        )
        loss.backward()
        tokens += int((batch.documents >= 0).sum()) * processes
        for index in range(len(TASKS)):
            own = batch.answers.flatten() == index
            log[index] += torch.stack([own.sum(), losses[own].sum(), right[own].sum()])
        if processes > 1:
            average_gradients([*model.parameters()], processes)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if process == 0 and done % 20 == 0:
            scores = " ".join(
                f"{task} {total / count:.3f}/{hits / count:.3f}"
                for task, (count, total, hits) in zip(TASKS, log.tolist(), strict=True)
                if count
            )
            seconds = time.time() - started
            speed = f"{tokens / 1e6:.2f}M {tokens / seconds:.0f}/s"
            print(f"{done} {seconds:.0f}s {speed} {scores}", flush=True)
            log.zero_()
        if process == 0 and done % arguments.save_every == 0:
            save_checkpoint(checkpoint, done, model, optimizers)
        if process == 0 and arguments.keep_every and done % arguments.keep_every == 0:
            save_model(model, arguments.work / f"model_{done}")
    if process == 0:
        save_model(model, arguments.output)
        print(f"saved to {arguments.output}")


if __name__ == "__main__":
    main()
