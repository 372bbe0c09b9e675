"""Train the demo model: a small Llama with a chat template, from scratch, on an endless stream.

    torchrun --nproc_per_node 2 data/demo/build/train_model.py --autocast     # 2 CPU cores
    python data/demo/build/train_model.py --steps 40 --work /tmp/work --output /tmp/model   # a try

The work folder holds a checkpoint (safetensors only); the same command goes on from it. Matrices
are trained with Muon, the rest with AdamW. The learning rate is constant, falls to zero over the
last `--decay` of the steps, and once more from 0.4 of itself over the finishing steps. Documents
are a function of seed, step and process, so a resumed run sees what an undisturbed one sees.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from make_tokenizer import MODEL_FOLDER
from safetensors.torch import load_file, save_file
from training_data import documents_of_step, known_pairs
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

# what a task's mean loss counts in the sum
TASK_WEIGHTS = {
    "context": 1.0,
    "closed_book": 0.6,
    "rewrite": 0.6,
    "question_list": 0.6,
    "plain": 0.2,
}
PROMPT_WEIGHT = 0.3  # of a token that is not part of an answer


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_argument_group("model")
    size.add_argument("--hidden_size", type=int, default=192)
    size.add_argument("--layers", type=int, default=5)
    size.add_argument("--heads", type=int, default=6)
    size.add_argument("--intermediate_size", type=int, default=512)
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=int, default=2600, help="optimiser steps (default 2600)")
    training.add_argument(
        "--decay", type=float, default=0.4, help="share of steps with falling rate"
    )
    training.add_argument(
        "--finish", type=int, default=440, help="more steps, on harder contexts (default 440)"
    )
    training.add_argument("--matrix_rate", type=float, default=0.02, help="Muon's learning rate")
    training.add_argument("--other_rate", type=float, default=4e-3, help="AdamW's learning rate")
    training.add_argument("--known", type=int, default=32, help="pairs of entities learnt by heart")
    training.add_argument("--seed", type=int, default=5)
    training.add_argument("--autocast", action="store_true", help="bfloat16 matrix products")
    files = parser.add_argument_group("files")
    files.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    files.add_argument("--output", type=Path, default=MODEL_FOLDER)
    files.add_argument("--save_every", type=int, default=200, help="steps between checkpoints")
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


def encode(
    documents: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids `[documents, length]`, loss weights and answer mask of the same shape.

    The weight is 1 for the tokens of an answer (its end included), less for the rest, 0 on padding.
    """
    rows = tokenizer(documents, add_special_tokens=False)["input_ids"]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    weights, answers = torch.zeros(len(rows), length), torch.zeros(len(rows), length)
    begin, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|eot|>"])
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        in_answer = False
        for column, token in enumerate(tokens):
            weights[row, column] = 1.0 if in_answer else PROMPT_WEIGHT
            answers[row, column] = float(in_answer)
            in_answer = token == begin or (in_answer and token != end)
    return ids, weights, answers


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


def main() -> None:
    """Train, log, save."""
    arguments = parse_arguments()
    processes, process = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes > 1:
        distributed.init_process_group("gloo")
        torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(arguments, len(tokenizer)).to(device)
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=arguments.matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=arguments.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint, first = arguments.work / "checkpoint.safetensors", 0
    if checkpoint.exists():
        first = load_checkpoint(checkpoint, model, optimizers)
    known = known_pairs(arguments.known)

    log, tokens, started = {}, 0, time.time()
    last = arguments.steps + arguments.finish
    for step in range(first, last):
        finishing = step >= arguments.steps
        if finishing:
            scale = 0.4 * (last - step) / arguments.finish
        else:
            left = 1 - step / arguments.steps
            scale = min(1.0, (step + 1) / 20) * min(1.0, left / arguments.decay)
        for optimizer, rate in zip(
            optimizers, (arguments.matrix_rate, arguments.other_rate), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        tasks = documents_of_step(step, process, arguments.seed, known, finishing)
        for task, documents in tasks.items():
            ids, weights, answers = (t.to(device) for t in encode(documents, tokenizer))
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.autocast):
                logits = model(input_ids=ids[:, :-1]).logits  # [documents, length - 1, vocabulary]
            losses = F.cross_entropy(
                logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            weight, answer = weights[:, 1:].flatten(), answers[:, 1:].flatten() > 0
            loss = (losses * weight).sum() / weight.sum()
            (loss * TASK_WEIGHTS[task] / processes).backward()
            tokens += ids.numel() * processes
            if answer.any():
                right = logits.flatten(0, 1)[answer].argmax(-1) == ids[:, 1:].flatten()[answer]
                entry = log.setdefault(task, [0.0, 0.0, 0])
                entry[0] += losses.detach()[answer].mean().item()
                entry[1] += right.float().mean().item()
                entry[2] += 1
        if processes > 1:
            gradients = [p.grad for p in model.parameters()]
            flat = torch.cat([g.flatten() for g in gradients])
            distributed.all_reduce(flat)
            for gradient, part in zip(
                gradients, flat.split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if process == 0 and (step + 1) % 20 == 0:
            scores = " ".join(f"{k} {v[0] / v[2]:.3f}/{v[1] / v[2]:.3f}" for k, v in log.items())
            seconds = time.time() - started
            print(
                f"{step + 1} {seconds:.0f}s {tokens / 1e6:.2f}M {tokens / seconds:.0f}/s {scores}",
                flush=True,
            )
            log = {}
        if process == 0 and (step + 1) % arguments.save_every == 0:
            save_checkpoint(checkpoint, step + 1, model, optimizers)
    if process == 0:
        model.save_pretrained(arguments.output)
        print(f"saved to {arguments.output}")


if __name__ == "__main__":
    main()
