"""Train many passages' adapters at once, each exactly as if it were alone.

The frozen model runs once over a batch that holds one step's prompts of every adapter; the loss is
the sum of each adapter's own mean. Adapters are ordered by their number of steps, so those that
still have a step to take are always the first ones of the stack: the others are not touched, their
AdamW state included.
"""

import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw
from tqdm import tqdm

from utils.lora import Adapter, LoraBank, stack, unstack
from utils.loss import LinearCrossEntropy, has_plain_head
from utils.paths import InputError

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
    bank.clear()
    plain_head = has_plain_head(bank.model)

    for step in range(len(steps[0]) if steps else 0):
        batches = [own[step] for own in steps if step < len(own)]
        active = len(batches)
        # views: an update in place reaches the stack
        views = [p[:active].detach().requires_grad_() for p in parameters]
        bank.set(dict(zip(stacked, zip(views[::2], views[1::2], strict=True), strict=True)))
        loss = _summed_loss(bank.model, batches, pad_id, device, plain_head)
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
    model: torch.nn.Module,
    batches: list[list[list[int]]],
    pad_id: int,
    device: torch.device,
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
    labels = labels.flatten()[used].to(device)
    weights = weights.flatten()[used]
    ids, used = ids.to(device), used.to(device)
    if plain_head:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        hidden = hidden.flatten(0, 1)[used]  # [tokens, width]
        weights = weights.to(device, torch.promote_types(hidden.dtype, torch.float32))
        weight = model.get_output_embeddings().weight
        return LinearCrossEntropy.apply(hidden, weight, labels, weights)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)[used]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # [tokens, vocabulary]
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights.to(device, losses.dtype)).sum()


# ------------------------------------------------------------------------------------------------
# As many as fit


def train_as_fits(
    bank: LoraBank, base: Adapter, prompts: list[list[list[int]]], *settings
) -> list[Adapter]:
    """`train_adapters`, in halves where the GPU's memory does not hold all adapters at once.

    Raises `InputError` where it does not hold a single one.
    """
    try:
        return train_adapters(bank, base, prompts, *settings)
    except torch.OutOfMemoryError:
        bank.clear()
    # outside of the handler, which keeps the failed step's tensors alive
    torch.cuda.empty_cache()
    if len(prompts) == 1:
        longest = max(map(len, prompts[0]))
        raise InputError(
            f"the GPU's memory does not hold the training of one adapter with prompts of {longest} "
            "tokens; use a smaller --max_length or --per_device_train_batch_size, or --dtype "
            "bfloat16"
        )
    half = len(prompts) // 2
    tqdm.write(f"{len(prompts)} adapters do not fit into the GPU's memory: {half} at a time")
    return [
        adapter
        for part in (prompts[:half], prompts[half:])
        for adapter in train_as_fits(bank, base, part, *settings)
    ]


def adapters_that_fit(bank: LoraBank, prompts: list[list[list[int]]], batch_size: int) -> int:
    """How many adapters to train side by side: a function of the model, the work and the device.

    On a CPU wide batches bring little once there is no padding, so about 2000 tokens a step. On a
    GPU 0.8 of the memory beside the model holds

        adapters * (20 * parameters of an adapter + tokens of a step * bytes that a token keeps)

    bytes: five float32 tensors an adapter (weights, gradient, two moments, a temporary), and what
    a token keeps until the backward pass, which is measured.
    """
    longest = batch_size * max((len(ids) for own in prompts for ids in own), default=1)
    device = bank.model.device
    if device.type != "cuda":
        return max(1, min(32, 2000 // longest))
    numbers = sum(A[0] * A[1] + B[0] * B[1] for A, B in bank.shapes(bank.rank).values())
    weights = sum(p.numel() * p.element_size() for p in bank.model.parameters())
    room = 0.8 * (torch.cuda.get_device_properties(device).total_memory - weights)
    return max(1, min(512, int(room / (20 * numbers + longest * bytes_kept(bank)))))


def bytes_kept(bank: LoraBank) -> int:
    """The bytes that a token of a training step keeps for the backward pass, measured on 64."""
    tokens = 64
    model = bank.model
    kept = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    adapter = bank.new_base_adapter(0)
    stacked = stack([adapter], model.device, torch.float32)
    bank.set({n: tuple(t.requires_grad_() for t in pair) for n, pair in stacked.items()})
    known = [p for p in model.parameters()] + [t for pair in stacked.values() for t in pair]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        ids = torch.zeros((1, tokens), dtype=torch.long, device=model.device)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    bank.clear()
    for tensor in known:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return (sum(kept.values()) + 2 * hidden.nbytes) // tokens
