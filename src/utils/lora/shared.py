"""M adapters that many passages share, each with weights of its own (Poly-PRAG, arXiv:2511.17044).

The pool is one adapter of rank M * r: the A of all M below each other, their B side by side. The
adapter of passage i is the pool with each of the M times its weight: `sum_m w_im B_m A_m`. Pool and
weights are trained together; with the pool frozen the weights of further passages alone. As in
Polytropon (arXiv:2202.13914) weights are the softmax of trained numbers, here for every matrix.
"""

import random
from collections.abc import Callable, Sequence
from itertools import islice
from types import SimpleNamespace

import torch

from utils.lora.bank import Adapter, LoraBank
from utils.lora.examples import Steps
from utils.lora.training import Objective, Schedule, State, constant

ROUTING_RATE = 10.0  # the rate of the numbers behind the weights, in rates of the pool
SPREAD = 1.0  # their standard deviation in the beginning

Turn = tuple[list[int], list[int]]  # of a step: the passages in it, and which of their steps


def routed(pool: Adapter, weights: torch.Tensor) -> Adapter:
    """The adapters with these `weights [.., L, M]` of the pool's M, a row for each of the L
    matrices in order: A `[.., M * r, in]` and B `[.., out, M * r]`. One adapter's A is the pool's
    own tensor, so that a merge knows what it may add (see `merges.weighted`)."""
    count, adapters = weights.shape[-1], {}
    for place, (name, (A, B)) in enumerate(pool.items()):
        own = weights[..., place, :].to(B).repeat_interleave(len(A) // count, -1)
        every_A = A.expand(*own.shape[:-1], *A.shape) if own.dim() > 1 else A
        adapters[name] = every_A, B * own[..., None, :]
    return adapters


def first_numbers(seed: int, data: str, matrices: int, count: int) -> torch.Tensor:
    """The numbers behind a passage's weights in the beginning, `[L, M]`: by seed and data alone."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {data}").getrandbits(62))
    return SPREAD * torch.randn((matrices, count), generator=generator)


def weights_of(numbers: torch.Tensor) -> torch.Tensor:
    """The weights `[.., L, M]` that trained `numbers` stand for."""
    return numbers.softmax(-1)


def in_turns(steps: Sequence[Steps], size: int, seed: int) -> list[Turn]:
    """Which passages are in each step of the training, and which of their own `steps` they take:
    in each round all passages that have one, `size` at a time, in another order."""
    turns, epochs = [], max(own.epochs for own in steps)
    for epoch in range(epochs):
        for place in range(max(own.per_epoch for own in steps)):
            having = [i for i, own in enumerate(steps) if place < own.per_epoch]
            random.Random(f"{seed} {epoch} {place}").shuffle(having)
            for start in range(0, len(having), size):
                rows = having[start : start + size]
                turns.append((rows, [epoch * steps[i].per_epoch + place for i in rows]))
    return turns


def train_shared(
    bank: LoraBank,
    pool: Adapter,
    numbers: torch.Tensor,
    steps: Sequence[Steps],
    objective: Objective,
    learning_rate: float,
    turns: Sequence[Turn],
    schedule: Schedule = constant,
    frozen: bool = False,
    routing_rate: float = ROUTING_RATE,
    resume: Callable[[State], None] = lambda state: None,
    after_step: Callable[[State, torch.Tensor], None] = lambda state, losses: None,
) -> torch.Tensor:
    """Train `pool`, in its place and unless it is `frozen`, and the `numbers [N, L, M]` of the
    passages whose `steps` these are; gives the weights `[N, L, M]`.

    Each of the `turns` (see `in_turns`) is a step; its loss is the sum of its passages'. AdamW
    counts the steps of each passage's numbers and of the pool by themselves. `resume` may put an
    earlier state in place, `after_step` gets the state and the mean loss `[1]` of the step.
    """
    stacked = {n: tuple(t[None].to(bank.devices()[n]) for t in pair) for n, pair in pool.items()}
    fixed = {name: (A[0], B[0]) for name, (A, B) in stacked.items()}
    shared, routing = State.of({} if frozen else stacked), State.of({"": (numbers,)})
    state = State(*(a + b for a, b in zip(_tensors(shared), _tensors(routing), strict=True)))
    resume(state)
    passes = SimpleNamespace(per_epoch=len(turns) // max(own.epochs for own in steps))
    for rows, taken in islice(turns, state.steps, None):
        own = State(*([tensor[rows] for tensor in part] for part in _tensors(routing)))
        views = [t.detach().requires_grad_() for t in (*own.parameters, *shared.parameters)]
        pairs = zip(views[1::2], views[2::2], strict=True)
        learning = {name: (A[0], B[0]) for name, (A, B) in zip(fixed, pairs, strict=False)}
        bank.set(routed(learning or fixed, weights_of(views[0])))
        losses = objective(bank, [steps[i][step] for i, step in zip(rows, taken, strict=True)])
        found = torch.autograd.grad(losses.sum(), views)
        paces = [schedule(steps[i], step) for i, step in zip(rows, taken, strict=True)]
        own.update(found[:1], routing_rate * learning_rate, paces)
        for whole, part in zip(_tensors(routing), _tensors(own), strict=True):
            whole[0][rows] = part[0]
        if not frozen:
            shared.update(found[1:], learning_rate, [schedule(passes, state.steps)])
        state.steps += 1
        after_step(state, losses.detach().mean()[None])
    bank.clear()
    pool |= {name: (A.cpu(), B.cpu()) for name, (A, B) in fixed.items()}
    return weights_of(numbers)


def _tensors(state: State) -> tuple[list[torch.Tensor], ...]:
    return state.parameters, state.averages, state.square_averages
