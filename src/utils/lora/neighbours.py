"""Training an adapter beside its neighbours: the answer to the interference of a sum.

At inference the adapters of several passages are added. An adapter that is trained alone has never
met the others; here each training step of adapter i adds those of passages that are retrieved
beside it, as they are at that step: `y = base(x) + s sum_j (x A_j^T) B_j^T` over i and its
neighbours j. Only A_i and B_i are updated (docs/neighbours.md).
"""

import random
from collections.abc import Callable

import torch

from utils.lora.bank import Adapter

# (adapter, step) -> the places, in the list of adapters, of those that it meets at that step
Neighbours = Callable[[int, int], list[int]]


def drawn(lists: list[list[list[int]]], keys: list[str]) -> Neighbours:
    """One of `lists[i]`, each a list of places, at every step of adapter i, by the seed `keys[i]`
    and the step alone: never by what ran before or beside it."""

    def draw(adapter: int, step: int) -> list[int]:
        own = lists[adapter]
        return random.Random(f"{keys[adapter]} {step}").choice(own) if own else []

    return draw


def beside(own: Adapter, stacked: Adapter, places: list[list[int]]) -> Adapter:
    """The adapters `own` `[n, rank, in]`, each with those of `stacked` at its `places` along the
    rank, so that the deltas add up: `[n, (K + 1) * rank, in]`. The others have no gradient. K is
    the most that any has; fewer are filled up with a B of zeros."""
    most = max(map(len, places))
    filled = [row + [0] * (most - len(row)) for row in places]
    counts = [[float(k < len(row)) for k in range(most)] for row in places]
    joined = {}
    for name, (A, B) in own.items():
        every_A, every_B = (tensor.detach() for tensor in stacked[name])
        index, mask = torch.tensor(filled, dtype=torch.long, device=A.device), A.new_tensor(counts)
        others_A = every_A[index].flatten(1, 2)  # [n, K * rank, in]
        others_B = every_B[index] * mask[..., None, None]  # [n, K, out, rank]
        others_B = others_B.movedim(1, 2).flatten(2)  # [n, out, K * rank]
        joined[name] = torch.cat([A, others_A], 1), torch.cat([B, others_B], 2)
    return joined
