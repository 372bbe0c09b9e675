"""Train many passages' adapters at once, each exactly as if it were alone.

A batch holds one step's examples of every adapter, and the loss is the sum of each adapter's own.
Adapters with more steps come first in the stack, so one that is finished is not touched any more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.optim.adamw import adamw
from tqdm import tqdm

from utils.lora.bank import Adapter, LoraBank, stack, unstack
from utils.lora.examples import Batches, Example
from utils.lora.neighbours import Neighbours, beside
from utils.running import InputError

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01  # torch.optim.AdamW's defaults

Steps = Sequence[Sequence[Example]]  # of one adapter: the examples of each step
Objective = Callable[[LoraBank, Batches], torch.Tensor]
# (an adapter's steps, step) -> factor of the rate, AdamW's steps since it began
Schedule = Callable[[Steps, int], tuple[float, int]]


def constant(steps: Steps, step: int) -> tuple[float, int]:
    """The same rate throughout (the paper)."""
    return 1.0, step


def halving(steps: Steps, step: int) -> tuple[float, int]:
    """Each pass over the prompts begins AdamW again, at half the rate of the one before."""
    passes, taken = divmod(step, steps.per_epoch)
    return 0.5**passes, taken


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "halving": halving,
}


def group_by_cost(works: Sequence[Sequence[Example]], adapters_per_batch: int) -> list[list[int]]:
    """Indices of works (an adapter's examples) in groups that are alike in steps and lengths. A
    function of the whole list alone, so a resumed run trains the same groups."""
    order = sorted(
        range(len(works)), key=lambda i: (-len(works[i]), -max(len(e.ids) for e in works[i]))
    )
    return [order[i : i + adapters_per_batch] for i in range(0, len(order), adapters_per_batch)]


@dataclass
class State:
    """N adapters in training: a tensor `[N, …]` for each A and B, AdamW's moments, steps taken."""

    parameters: list[torch.Tensor]
    averages: list[torch.Tensor]
    square_averages: list[torch.Tensor]
    steps: int = 0

    @classmethod
    def of(cls, stacked: Adapter) -> "State":
        """The state before the first step of the adapters in `stacked`."""
        parameters = [tensor for pair in stacked.values() for tensor in pair]
        averages, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        return cls(parameters, averages, squares)

    def update(
        self, gradients: Sequence[torch.Tensor], rate: float, paces: Sequence[tuple[float, int]]
    ) -> None:
        """One AdamW step of the first adapters, as many as `paces`: what the schedule says."""
        every = (self.parameters, gradients, self.averages, self.square_averages)
        end = 0
        for (factor, taken), same in groupby(paces):
            start, end = end, end + len(list(same))
            parameters, own, averages, squares = ([t[start:end] for t in ts] for ts in every)
            if taken == 0:
                for moments in (*averages, *squares):
                    moments.zero_()
            counts = [torch.tensor(float(taken)) for _ in parameters]
            with torch.no_grad():
                adamw(
                    parameters, own, averages, squares, [], counts,
                    foreach=True, amsgrad=False, maximize=False, beta1=BETA1, beta2=BETA2,
                    eps=EPSILON, weight_decay=WEIGHT_DECAY, lr=factor * rate,
                )  # fmt: skip
        self.steps += 1


def train_adapters(
    bank: LoraBank,
    base: Adapter,
    steps: Sequence[Steps],
    objective: Objective,
    learning_rate: float,
    resume: Callable[[State], None] | None = None,
    after_step: Callable[[State, torch.Tensor], None] | None = None,
    schedule: Schedule = constant,
    neighbours: Neighbours | None = None,
    side_by_side: int | None = None,
) -> list[Adapter]:
    """One adapter per entry of `steps`, each started from `base` (paper, section 3.2.2).

    AdamW with the `learning_rate`, as `schedule` says. `resume` may put an earlier state in
    place; `after_step` gets the state and the losses `[active]` of the step. With `neighbours` each
    step also adds these of the adapters, without a gradient. A step's gradients are computed
    `side_by_side` adapters at a time (None: all). The adapters are in the order of `steps` and in
    the dtype of `base`. Raises `InputError` if one ends with numbers that are not finite.
    """
    order = sorted(range(len(steps)), key=lambda i: -len(steps[i]))
    ordered = [steps[i] for i in order]
    stacked = stack([base] * len(order), bank.devices(), next(iter(base.values()))[0].dtype)
    state = State.of(stacked)
    if resume:
        resume(state)
    place = {adapter: row for row, adapter in enumerate(order)}
    while ordered and state.steps < len(ordered[0]):
        step = state.steps
        active = [own for own in ordered if step < len(own)]
        batches = [own[step] for own in active]
        met = neighbours and [[place[i] for i in neighbours(n, step)] for n in order[: len(active)]]

        def gradients(part: slice, batches=batches, met=met) -> tuple[torch.Tensor, ...]:
            # views: an update in place reaches the stack
            views = [p[part].detach().requires_grad_() for p in state.parameters]
            own = dict(zip(stacked, zip(views[::2], views[1::2], strict=True), strict=True))
            bank.set(beside(own, stacked, met[part]) if met else own)
            losses = objective(bank, batches[part])
            if losses.shape != (len(batches[part]),):
                words = f"one loss per adapter, not {tuple(losses.shape)}"
                raise ValueError(f"an objective gives {words}")
            return losses.detach(), *torch.autograd.grad(losses.sum(), views)

        losses, *found = in_parts(gradients, len(active), side_by_side or len(active))
        state.update(found, learning_rate, [schedule(own, step) for own in active])
        if after_step:
            after_step(state, losses)
    bank.clear()
    _refuse_infinite(state.parameters, learning_rate)
    trained = unstack(stacked)
    return [trained[order.index(i)] for i in range(len(steps))]


def _refuse_infinite(parameters: list[torch.Tensor], learning_rate: float) -> None:
    finite = torch.stack([p.isfinite().flatten(1).all(1).cpu() for p in parameters]).all(0)  # [N]
    if not finite.all():
        raise InputError(
            f"training gave numbers that are not finite for {int((~finite).sum())} of {len(finite)}"
            f" adapters; use a smaller --learning_rate than {learning_rate:g}, or --dtype float32"
        )


def in_parts(
    work: Callable[[slice], tuple[torch.Tensor, ...]], count: int, size: int
) -> tuple[torch.Tensor, ...]:
    """The tensors of `work(part)` for `size` of `count` rows at a time, put together."""
    parts = [work(slice(start, min(start + size, count))) for start in range(0, count, size)]
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def train_as_fits(
    bank: LoraBank,
    base: Adapter,
    steps: Sequence[Steps],
    objective: Objective,
    rate: float,
    side_by_side: int | None = None,
    **more: Any,
) -> list[Adapter]:
    """`train_adapters`, with fewer side by side if the GPU's memory does not hold so many: of the
    same steps, so the adapters differ by rounding alone."""
    size = min(side_by_side or len(steps), len(steps))
    while True:
        try:
            return train_adapters(bank, base, steps, objective, rate, side_by_side=size, **more)
        except torch.OutOfMemoryError:
            pass
        # outside of the handler, which keeps the failed call's tensors alive
        bank.clear()
        torch.cuda.empty_cache()
        if size == 1:
            remedy = "a smaller --max_length or --per_device_train_batch_size, or --dtype bfloat16"
            raise InputError(f"the GPU's memory does not hold one of the adapters; use {remedy}")
        tqdm.write(f"{size} adapters do not fit into the GPU's memory: {size // 2} at a time")
        size //= 2
