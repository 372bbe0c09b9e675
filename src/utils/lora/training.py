"""Train many passages' adapters at once, each exactly as if it were alone.

The frozen model runs once over a batch that holds one step's prompts of every adapter; the loss is
the sum of each adapter's own mean. Adapters are ordered by their number of steps, so those that
still have a step to take are always the first ones of the stack: the others are not touched, their
AdamW state included.
"""

import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw

from utils.lora.bank import Adapter, LoraBank, stack, unstack
from utils.lora.loss import LinearCrossEntropy, has_plain_head
from utils.lora.memory import in_halves
from utils.running import InputError

# torch.optim.AdamW's defaults, as the contract asks
BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01


def group_by_cost(prompts: list[list[list[int]]], adapters_per_batch: int) -> list[list[int]]:
    """Indices of work items in groups of `adapters_per_batch`, alike in steps and lengths.

    A function of the whole work list alone, so a resumed run trains the same groups. `prompts` are
    token ids, per adapter and prompt.
    """

    def cost(index: int) -> tuple[int, int]:
        return -len(prompts[index]), -max(map(len, prompts[index]))

    order = sorted(range(len(prompts)), key=cost)
    return [order[i : i + adapters_per_batch] for i in range(0, len(order), adapters_per_batch)]


def train_adapters(
    bank: LoraBank,
    base: Adapter,
    prompts: list[list[list[int]]],
    learning_rate: float,
    epochs: int,
    batch_size: int,
    pad_id: int,
) -> list[Adapter]:
    """One adapter per entry of `prompts`, each started from `base` (paper, section 3.2.2).

    `prompts[i]` are adapter i's prompts as token ids, taken in their order, `batch_size` a step,
    `epochs` times over. All tokens are labels; a step's loss is the mean over its label tokens; the
    optimiser is AdamW with a constant learning rate. The adapters come back in the order of
    `prompts`, in the dtype of `base`.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    steps = [
        [prompts[i][start : start + batch_size] for start in range(0, len(prompts[i]), batch_size)]
        * epochs
        for i in order
    ]
    dtype = next(iter(base.values()))[0].dtype
    stacked = stack([base] * len(order), bank.devices(), dtype)
    parameters = [tensor for pair in stacked.values() for tensor in pair]
    averages = [torch.zeros_like(p) for p in parameters]
    square_averages = [torch.zeros_like(p) for p in parameters]
    counts = [torch.zeros(()) for _ in parameters]  # every active adapter has taken as many steps
    bank.clear()
    plain_head = has_plain_head(bank.model)

    for step in range(len(steps[0]) if steps else 0):
        batches = [own[step] for own in steps if step < len(own)]
        active = len(batches)
        # views: an update in place reaches the stack
        views = [p[:active].detach().requires_grad_() for p in parameters]
        bank.set(dict(zip(stacked, zip(views[::2], views[1::2], strict=True), strict=True)))
        loss = _summed_loss(bank.model, batches, pad_id, plain_head)
        gradients = torch.autograd.grad(loss, views)
        with torch.no_grad():
            adamw(
                [p[:active] for p in parameters],
                list(gradients),
                [a[:active] for a in averages],
                [a[:active] for a in square_averages],
                [],
                counts,
                foreach=True,
                amsgrad=False,
                beta1=BETA1,
                beta2=BETA2,
                lr=learning_rate,
                weight_decay=WEIGHT_DECAY,
                eps=EPSILON,
                maximize=False,
            )
    bank.clear()
    whole = torch.stack([p.isfinite().flatten(1).all(1).cpu() for p in parameters]).all(0)  # [N]
    if not whole.all():
        raise InputError(
            f"training gave numbers that are not finite for {int((~whole).sum())} of {len(order)} "
            f"adapters; use a smaller --learning_rate than {learning_rate:g}, or --dtype float32"
        )
    trained = unstack(stacked)
    return [trained[order.index(i)] for i in range(len(prompts))]


def _summed_loss(
    model: torch.nn.Module,
    batches: list[list[list[int]]],
    pad_id: int,
    plain_head: bool,
) -> torch.Tensor:
    """The sum over adapters of the mean loss over the adapter's label tokens.

    `batches[i]` are the prompts of adapter i. Padding stands on the right, where causal attention
    keeps it out of every label's sight, so no attention mask is needed.
    """
    rows = max(map(len, batches))
    length = max(len(ids) for batch in batches for ids in batch)
    ids = torch.full((len(batches) * rows, length), pad_id)
    labels, weights = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.float64)
    for number, batch in enumerate(batches):
        label_tokens = sum(len(prompt) - 1 for prompt in batch)
        for row, prompt in enumerate(batch, start=number * rows):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            labels[row, : len(prompt) - 1] = torch.tensor(prompt[1:])
            weights[row, : len(prompt) - 1] = 1 / label_tokens
    used = weights.flatten().nonzero().squeeze(-1)  # the tokens that have a label
    labels, weights = labels.flatten()[used], weights.flatten()[used]
    ids = ids.to(model.device)
    head = model.get_output_embeddings().weight
    wide = torch.promote_types(head.dtype, torch.float32)
    # a model that is spread over several GPUs begins on one of them and ends on another
    used, labels, weights = used.to(head.device), labels.to(head.device), weights.to(head.device)
    if plain_head:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        hidden = hidden.to(head.device).flatten(0, 1)[used]  # [tokens, width]
        return LinearCrossEntropy.apply(hidden, head, labels, weights.to(wide))
    logits = model(input_ids=ids, use_cache=False).logits.to(head.device)
    logits = logits.flatten(0, 1)[used].to(wide)  # [tokens, vocabulary]
    return (F.cross_entropy(logits, labels, reduction="none") * weights.to(wide)).sum()


def train_as_fits(
    bank: LoraBank, base: Adapter, prompts: list[list[list[int]]], *settings
) -> list[Adapter]:
    """`train_adapters`, in halves where the GPU's memory does not hold all adapters at once.

    Raises `InputError` where it does not hold a single one.
    """

    def train(part: list[list[list[int]]]) -> list[Adapter]:
        bank.clear()  # of what a failed call left
        return train_adapters(bank, base, part, *settings)

    remedy = (
        "use a smaller --max_length or --per_device_train_batch_size, or --dtype bfloat16; the "
        f"longest prompt has {max(len(ids) for own in prompts for ids in own)} tokens"
    )
    return in_halves(train, prompts, "adapters", remedy)
