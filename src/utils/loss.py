"""The training loss without the logits of a whole batch.

A vocabulary of 128,000 makes logits the largest tensor of a step by far. The output layer is
frozen, so the loss and its gradient by the hidden states can be had together, some tokens at a
time, and no logits outlive their turn.
"""

import torch

ELEMENTS = 1 << 25  # of logits at a time: 128 MiB in float32


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
        size = max(1, ELEMENTS // len(weight))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = (hidden[part] @ weight.T).to(wide)  # [size, vocabulary]
            normaliser = logits.logsumexp(-1, keepdim=True)
            label = labels[part, None]
            loss += ((normaliser - logits.gather(-1, label)).squeeze(-1) * weights[part]).sum()
            # the gradient by the logits: softmax minus one at the label, times the token's weight
            softmax = logits.sub_(normaliser).exp_()
            softmax.scatter_add_(-1, label, -torch.ones_like(label, dtype=wide))
            softmax.mul_(weights[part, None])
            gradient[part] = softmax.to(hidden.dtype) @ weight
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
