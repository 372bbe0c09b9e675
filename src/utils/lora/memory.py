"""As much side by side as a GPU's memory holds: estimated first, halved if that was too much."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from utils.lora.bank import LoraBank, stack
from utils.lora.examples import Example
from utils.lora.loss import elements
from utils.running import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 256  # side by side; beyond that a GPU is busy anyway, and smaller groups are alike in length


def in_halves(
    work: Callable[[list[Item]], list[Result]], items: list[Item], what: str, remedy: str
) -> list[Result]:
    """`work(items)`, a result per item, in halves if the GPU's memory does not hold all at once."""
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
    return in_halves(work, items[:half], what, remedy) + in_halves(work, items[half:], what, remedy)


def adapters_that_fit(
    bank: LoraBank, works: Sequence[Sequence[Example]], batch_size: int, neighbours: int = 0
) -> int:
    """How many adapters to train side by side: a function of the model, the work and the device.

    On a CPU, which gains little from wide batches, about 2000 tokens a step; on a GPU as many as
    `training_bytes` puts into 0.8 of the memory.
    """
    device = bank.model.device
    if device.type != "cuda":
        return max(1, min(32, 2000 // _longest_step(works, batch_size)))
    memory = 0.8 * torch.cuda.get_device_properties(device).total_memory
    none, one = (training_bytes(bank, works, batch_size, n, neighbours) for n in (0, 1))
    return max(1, min(MOST, int((memory - none) / (one - none))))


def training_bytes(
    bank: LoraBank,
    works: Sequence[Sequence[Example]],
    batch_size: int,
    adapters: int,
    neighbours: int = 0,
) -> int:
    """The memory that training `adapters` side by side takes, in bytes:

        model + logits + adapters * ((20 + 8 * (neighbours + 1), if any) * parameters of an adapter
                                     + tokens of its longest step * bytes that a token keeps)

    An adapter has five float32 tensors: weights, gradient, two moments, a temporary. Beside K
    neighbours it is a part of one of (K + 1) * rank, which is copied with its gradient. The logits
    are those of one turn of the loss.
    """
    model = bank.model
    numbers = sum(A[0] * A[1] + B[0] * B[1] for A, B in bank.shapes(bank.rank).values())
    # in the model's dtype, in float32, and one of them once more
    logits = 12 * elements(model.get_output_embeddings().weight.device)
    copies = 8 * (neighbours + 1) if neighbours else 0
    kept = bytes_kept(bank, (neighbours + 1) * bank.rank)
    each = (20 + copies) * numbers + _longest_step(works, batch_size) * kept
    return model.get_memory_footprint(return_buffers=False) + logits + adapters * each


def _longest_step(works: Sequence[Sequence[Example]], batch_size: int) -> int:
    return batch_size * max((len(example.ids) for own in works for example in own), default=1)


def bytes_kept(bank: LoraBank, rank: int) -> int:
    """The bytes that a token of a training step keeps for the backward pass, measured on 64 with an
    adapter of `rank`."""
    model, tokens, kept = bank.model, 64, {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    stacked = stack([bank.new_base_adapter(0, rank)], bank.devices(), torch.float32)
    bank.set({n: tuple(t.requires_grad_() for t in pair) for n, pair in stacked.items()})
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        ids = torch.zeros((1, tokens), dtype=torch.long, device=model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    bank.clear()
    for tensor in (*model.parameters(), *(t for pair in stacked.values() for t in pair)):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return (sum(kept.values()) + 2 * hidden.nbytes) // tokens


def prompts_that_fit(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> int:
    """How many prompts to answer side by side: a function of model, prompts and device. 32 on a
    CPU; on a GPU as many key-value caches as half of the memory beside the model holds."""
    if model.device.type != "cuda":
        return 32
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached_heads = getattr(config, "num_key_value_heads", None) or heads
    token_bytes = 4 * config.num_hidden_layers * cached_heads * head_size
    token_bytes += 16 * config.hidden_size  # activations of the prompt's forward pass
    each = token_bytes * (max(map(len, prompts)) + max_new_tokens) + 6 * config.vocab_size
    memory = torch.cuda.get_device_properties(model.device).total_memory
    free = memory - model.get_memory_footprint(return_buffers=False)
    return max(1, min(MOST, int(0.5 * free / each)))
