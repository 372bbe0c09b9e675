"""How fast this machine multiplies matrices: the limit for everything that a model computes.

The products are those of the model's own layers, in its dtype, for as many rows as a step has.
"""

import time
from collections import Counter

import torch
from transformers import PreTrainedModel

ROWS = 2048  # tokens at a time: more are not faster on a CPU or a GPU
SECONDS = 0.3  # for each shape


def products(model: PreTrainedModel) -> Counter[tuple[int, int]]:
    """How often each shape `(out, in)` of a linear layer occurs in `model`, the head included."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return Counter(tuple(layer.weight.shape) for layer in layers)


@torch.inference_mode()
def matmul_rate(model: PreTrainedModel, device: torch.device) -> float:
    """Operations a second (a multiplication and an addition are two) of `model`'s products."""
    operations = seconds = 0.0
    for (out, wide), count in products(model).items():
        own = 2 * ROWS * out * wide
        operations += count * own
        seconds += count * _seconds(out, wide, model.dtype, device)
    return operations / seconds


def _seconds(out: int, wide: int, dtype: torch.dtype, device: torch.device) -> float:
    """The least time of one product: what else the machine does makes it longer, never shorter."""
    rows = torch.randn(ROWS, wide, device=device).to(dtype)
    weight = torch.randn(out, wide, device=device).to(dtype)
    least, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or least == float("inf"):
        start = time.perf_counter()
        rows @ weight.T
        if device.type == "cuda":
            torch.cuda.synchronize()
        least = min(least, time.perf_counter() - start)
    return least
