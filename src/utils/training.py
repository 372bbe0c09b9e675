"""Train many passages' adapters at once, each exactly as if it were alone.

The frozen model runs once over a batch that holds one step's prompts of every adapter; the loss is
the sum of each adapter's own mean. Adapters are ordered by their number of steps, so those that
still have a step to take are always the first ones of the stack: the others are not touched, their
AdamW state included.
"""

import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw

from utils.lora import Adapter, LoraBank, stack, unstack

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
    device = next(bank.model.parameters()).device
    dtype = next(iter(base.values()))[0].dtype
    stacked = stack([base] * len(order), device, dtype)
    parameters = [tensor for pair in stacked.values() for tensor in pair]
    averages = [torch.zeros_like(p) for p in parameters]
    square_averages = [torch.zeros_like(p) for p in parameters]
    counts = [torch.zeros(()) for _ in parameters]  # every active adapter has taken as many steps

    for step in range(len(steps[0]) if steps else 0):
        batches = [own[step] for own in steps if step < len(own)]
        active = len(batches)
        # views: an update in place reaches the stack
        views = [p[:active].detach().requires_grad_() for p in parameters]
        bank.set(dict(zip(stacked, zip(views[::2], views[1::2], strict=True), strict=True)))
        loss = _summed_loss(bank.model, batches, pad_id, device)
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
    trained = unstack(stacked)
    return [trained[order.index(i)] for i in range(len(prompts))]


def _summed_loss(
    model: torch.nn.Module, batches: list[list[list[int]]], pad_id: int, device: torch.device
) -> torch.Tensor:
    """The sum over adapters of the mean loss over the adapter's label tokens.

    `batches[i]` are the prompts of adapter i. Padding stands on the right, where causal attention
    keeps it out of every label's sight, so no attention mask is needed.
    """
    rows = max(map(len, batches))
    length = max(len(ids) for batch in batches for ids in batch)
    ids = torch.full((len(batches) * rows, length), pad_id)
    labels, weights = torch.zeros_like(ids), torch.zeros(ids.shape)
    for number, batch in enumerate(batches):
        label_tokens = sum(len(prompt) - 1 for prompt in batch)
        for row, prompt in enumerate(batch, start=number * rows):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            labels[row, : len(prompt) - 1] = torch.tensor(prompt[1:])
            weights[row, : len(prompt) - 1] = 1 / label_tokens
    logits = model(input_ids=ids.to(device), use_cache=False).logits  # [rows, length, vocabulary]
    logits = _at_least_float32(logits).flatten(0, 1)
    losses = F.cross_entropy(logits, labels.flatten().to(device), reduction="none")
    return (losses * weights.flatten().to(device, losses.dtype)).sum()


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def adapters_that_fit(
    model: torch.nn.Module, prompts: list[list[list[int]]], batch_size: int
) -> int:
    """How many adapters to train side by side: a function of the model, the work and the device.

    On a CPU wide batches bring little once there is no padding, so about 2000 tokens a step. On a
    GPU what its whole memory holds beside the model, by a rough count of the activations and
    logits that a token keeps for the backward pass.
    """
    longest = batch_size * max((len(ids) for own in prompts for ids in own), default=1)
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return max(1, min(32, 2000 // longest))
    config = model.config
    width = 16 * config.hidden_size + 8 * config.intermediate_size
    token_bytes = config.num_hidden_layers * width * parameter.element_size()
    token_bytes += 12 * config.vocab_size
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = torch.cuda.get_device_properties(parameter.device).total_memory
    return max(1, min(256, int(0.6 * (memory - weights) / (token_bytes * longest))))
