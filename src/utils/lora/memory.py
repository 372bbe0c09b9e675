"""As much side by side as a GPU's memory holds: estimated first, halved where that was too much."""

from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from utils.lora.bank import LoraBank, stack
from utils.lora.loss import elements
from utils.running import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
# Beyond that a GPU is busy anyway, and groups that are smaller than the work are alike in length.
MOST_ADAPTERS = 256
MOST_PROMPTS = 256


def in_halves(
    work: Callable[[list[Item]], list[Result]], items: list[Item], what: str, remedy: str
) -> list[Result]:
    """`work(items)`, a result per item, in halves where the GPU's memory does not hold all at once.

    Raises `InputError` with `what` ("adapters") and `remedy` where it does not hold a single one.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError:
        pass
    # outside of the handler, which keeps the failed call's tensors alive
    torch.cuda.empty_cache()
    if len(items) == 1:
        raise InputError(f"the GPU's memory does not hold one of the {what}; {remedy}")
    half = len(items) // 2
    tqdm.write(f"{len(items)} {what} do not fit into the GPU's memory: {half} at a time")
    return [
        result
        for part in (items[:half], items[half:])
        for result in in_halves(work, part, what, remedy)
    ]


def adapters_that_fit(bank: LoraBank, prompts: list[list[list[int]]], batch_size: int) -> int:
    """How many adapters to train side by side: a function of the model, the work and the device.

    On a CPU wide batches bring little once there is no padding, so about 2000 tokens a step. On a
    GPU as many as `training_bytes` puts into 0.8 of the memory, at most `MOST_ADAPTERS`.
    """
    longest = _longest_step(prompts, batch_size)
    device = bank.model.device
    if device.type != "cuda":
        return max(1, min(32, 2000 // longest))
    memory = 0.8 * torch.cuda.get_device_properties(device).total_memory
    none, one = (training_bytes(bank, prompts, batch_size, count) for count in (0, 1))
    return max(1, min(MOST_ADAPTERS, int((memory - none) / (one - none))))


def training_bytes(
    bank: LoraBank, prompts: list[list[list[int]]], batch_size: int, adapters: int
) -> int:
    """The memory that training `adapters` side by side takes, in bytes:

        model + logits + adapters * (20 * parameters of an adapter
                                     + tokens of its longest step * bytes that a token keeps)

    An adapter has five float32 tensors: weights, gradient, two moments, a temporary. What a token
    keeps until the backward pass is measured. The logits are those of one turn of the loss.
    """
    model = bank.model
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    numbers = sum(A[0] * A[1] + B[0] * B[1] for A, B in bank.shapes(bank.rank).values())
    # in the model's dtype, in float32, and one of them once more
    logits = 12 * elements(model.get_output_embeddings().weight.device)
    each = 20 * numbers + _longest_step(prompts, batch_size) * bytes_kept(bank)
    return weights + logits + adapters * each


def _longest_step(prompts: list[list[list[int]]], batch_size: int) -> int:
    return batch_size * max((len(ids) for own in prompts for ids in own), default=1)


def bytes_kept(bank: LoraBank) -> int:
    """The bytes that a token of a training step keeps for the backward pass, measured on 64."""
    tokens = 64
    model = bank.model
    kept = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    stacked = stack([bank.new_base_adapter(0)], bank.devices(), torch.float32)
    bank.set({n: tuple(t.requires_grad_() for t in pair) for n, pair in stacked.items()})
    known = [p for p in model.parameters()] + [t for pair in stacked.values() for t in pair]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        ids = torch.zeros((1, tokens), dtype=torch.long, device=model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    bank.clear()
    for tensor in known:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return (sum(kept.values()) + 2 * hidden.nbytes) // tokens


def prompts_that_fit(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many prompts to answer side by side: a function of model, prompts and device.

    32 on a CPU; on a GPU as many key-value caches as half of the memory beside the model holds.
    """
    if model.device.type != "cuda":
        return 32
    config = model.config
    head_size = config.hidden_size // config.num_attention_heads
    token_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * head_size
    token_bytes += 16 * config.hidden_size  # activations of the prompt's forward pass
    longest = max(map(len, prompts)) + max_new_tokens
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = torch.cuda.get_device_properties(model.device).total_memory
    each = token_bytes * longest + 6 * config.vocab_size
    return max(1, min(MOST_PROMPTS, int(0.5 * (memory - weights) / each)))
