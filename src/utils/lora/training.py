"""Train many passages' adapters at once, each exactly as if it were alone.

A batch holds one step's examples of every adapter, and the loss is the sum of each adapter's own.
Adapters with more steps come first in the stack, so one that is finished is not touched any more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from utils.lora.bank import Adapter, LoraBank, stack, unstack
from utils.lora.examples import Batches, Example
from utils.lora.memory import in_halves
from utils.running import InputError

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01  # torch.optim.AdamW's defaults

Steps = Sequence[Sequence[Example]]  # of one adapter: the examples of each step
Objective = Callable[[LoraBank, Batches], torch.Tensor]


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

    def update(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """One AdamW step of the first adapters, as many as `gradients` are for."""
        active = len(gradients[0])
        every = (self.parameters, self.averages, self.square_averages)
        parameters, averages, squares = ([t[:active] for t in tensors] for tensors in every)
        # every active adapter has taken as many steps
        counts = [torch.tensor(float(self.steps)) for _ in parameters]
        with torch.no_grad():
            adamw(
                parameters, list(gradients), averages, squares, [], counts,
                foreach=True, amsgrad=False, maximize=False,
                beta1=BETA1, beta2=BETA2, eps=EPSILON, weight_decay=WEIGHT_DECAY, lr=learning_rate,
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
) -> list[Adapter]:
    """One adapter per entry of `steps`, each started from `base` (paper, section 3.2.2).

    AdamW with a constant learning rate. `resume` may put an earlier state in place; `after_step`
    gets the state and the losses `[active]` of the step. The adapters are in the order of `steps`
    and in the dtype of `base`. Raises `InputError` if one ends with numbers that are not finite.
    """
    order = sorted(range(len(steps)), key=lambda i: -len(steps[i]))
    ordered = [steps[i] for i in order]
    stacked = stack([base] * len(order), bank.devices(), next(iter(base.values()))[0].dtype)
    state = State.of(stacked)
    if resume:
        resume(state)
    while ordered and state.steps < len(ordered[0]):
        batches = [own[state.steps] for own in ordered if state.steps < len(own)]
        # views: an update in place reaches the stack
        views = [p[: len(batches)].detach().requires_grad_() for p in state.parameters]
        bank.set(dict(zip(stacked, zip(views[::2], views[1::2], strict=True), strict=True)))
        losses = objective(bank, batches)
        if losses.shape != (len(batches),):
            raise ValueError(f"an objective gives one loss per adapter, not {tuple(losses.shape)}")
        state.update(torch.autograd.grad(losses.sum(), views), learning_rate)
        if after_step:
            after_step(state, losses.detach())
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


def train_as_fits(
    bank: LoraBank, base: Adapter, steps: Sequence[Steps], objective: Objective, rate: float
) -> list[Adapter]:
    """`train_adapters`, in halves if the GPU's memory does not hold all adapters at once."""

    def train(part: list[Steps]) -> list[Adapter]:
        bank.clear()  # of what a failed call left
        return train_adapters(bank, base, part, objective, rate)

    remedy = "use a smaller --max_length or --per_device_train_batch_size, or --dtype bfloat16"
    return in_halves(train, list(steps), "adapters", remedy)
