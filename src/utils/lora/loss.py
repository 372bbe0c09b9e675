"""The training loss without the logits of a whole batch.

A vocabulary of 128,000 makes logits the largest tensor of a step by far. The output layer is
frozen, so the loss and its gradient by the hidden states can be had together, some tokens at a
time, and no logits outlive their turn.
"""

import torch


def elements(device: torch.device) -> int:
    """How many logits to hold at a time: 128 MiB of float32 on a CPU, 1 GiB on a GPU."""
    return 1 << (28 if device.type == "cuda" else 25)


class LinearCrossEntropy(torch.autograd.Function):
    """`sum_t weights[t] * cross_entropy(hidden[t] @ weight.T, labels[t])`; `hidden` has a gradient.

    `hidden [tokens, width]`, `weight [vocabulary, width]`, `labels [tokens]`, `weights [tokens]`.
    Logits are float32 at least.
    """

    @staticmethod
    def forward(ctx, hidden, weight, labels, weights):
        """The loss; its gradient is computed here too and kept for `backward`."""
        gradient = torch.empty_like(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        size = max(1, elements(weight.device) // len(weight))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = hidden[part] @ weight.T  # [size, vocabulary]
            softmax = torch.softmax(logits, -1, dtype=wide)
            label = labels[part, None]
            chance = softmax.gather(-1, label).clamp_min(torch.finfo(wide).tiny)
            loss -= (chance.log().squeeze(-1) * weights[part]).sum()
            # the gradient by the logits: softmax minus one at the label, times the token's weight
            softmax.scatter_add_(-1, label, -torch.ones_like(label, dtype=wide))
            gradient[part] = (softmax.to(hidden.dtype) @ weight) * weights[part, None]
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx, output_gradient):
        """The gradient by `hidden` alone."""
        (gradient,) = ctx.saved_tensors
        return gradient * output_gradient.to(gradient.dtype), None, None, None


def has_plain_head(model: torch.nn.Module) -> bool:
    """Whether the model's logits are its last hidden states times the output layer's weight.

    Some architectures scale or cap them; those need their own forward pass.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    ids = torch.arange(3, device=model.device)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits)
