"""A Llama's forward pass and loss for training on a CPU: packed documents, few passes over memory.

On CPUs whose bfloat16 matrix products are fast (AMX), everything else takes most of the time of a
small model. So documents are packed into full rows, `torch.compile` fuses what is between the
products, attention is written out (the fused kernel's backward pass is slower at these lengths),
and the loss never holds the logits of a whole batch. The parameters are those of a
`transformers.LlamaForCausalLM`; `tests/test_demo_build.py` compares the two.
"""

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

LOW = torch.bfloat16  # the type of the matrix products
LOSS_ROWS = 512  # tokens whose logits exist at the same time


def _normalise(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def _rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = states.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (torch.cat([first, second], -1) * cosine + turned * sine).to(LOW)


def rotary_tables(length: int, head_size: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[length, head_size]` of the rotary embedding (arXiv:2104.09864).

    Positions count from the row's start, not the document's: only differences enter.
    """
    rates = base ** (-torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(length)[:, None] * rates[None]
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def attention_mask(documents: torch.Tensor) -> torch.Tensor:
    """`[rows, 1, length, length]`, to be added to the scores; `documents` is `[rows, length]`.

    A token attends to the earlier tokens of its row that carry the same document number.
    """
    visible = (documents[:, :, None] == documents[:, None, :]).tril()
    return torch.where(visible[:, None], 0.0, float("-inf")).to(LOW)


def final_hidden_states(
    model: LlamaForCausalLM,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
) -> torch.Tensor:
    """The normalised states before the output layer, bfloat16 `[rows, length, hidden]`.

    `ids` is `[rows, length]`, `mask` what `attention_mask` gives.
    """
    config = model.config
    heads, head_size = config.num_attention_heads, config.head_dim
    rows, length = ids.shape
    hidden = F.embedding(ids, model.model.embed_tokens.weight)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        normal = _normalise(hidden, layer.input_layernorm.weight, config.rms_norm_eps).to(LOW)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.cat([projection.weight for projection in projections]).to(LOW)
        states = F.linear(normal, weight).view(rows, length, 3, heads, head_size)
        query, key, value = states.permute(2, 0, 3, 1, 4).unbind(0)  # [rows, heads, length, size]
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        scores = (query @ key.transpose(-1, -2)).float() * head_size**-0.5 + mask
        mixed = torch.softmax(scores, -1).to(LOW) @ value
        mixed = mixed.transpose(1, 2).reshape(rows, length, heads * head_size)
        hidden = hidden + F.linear(mixed, attention.o_proj.weight.to(LOW)).float()
        normal = _normalise(hidden, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        weight = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).to(LOW)
        gate, up = F.linear(normal.to(LOW), weight).chunk(2, -1)
        inner = (F.silu(gate.float()) * up.float()).to(LOW)
        hidden = hidden + F.linear(inner, mlp.down_proj.weight.to(LOW)).float()
    return _normalise(hidden, model.model.norm.weight, config.rms_norm_eps).to(LOW)


class WeightedCrossEntropy(torch.autograd.Function):
    """The weighted sum of next-token losses, with gradients made a few hundred tokens at a time."""

    @staticmethod
    def forward(
        context: torch.autograd.function.FunctionCtx,
        hidden: torch.Tensor,
        embedding: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`hidden [tokens, size]` -> the sum, each token's loss, and whether its guess is right."""
        low = embedding.to(LOW)
        hidden_gradient, embedding_gradient = torch.empty_like(hidden), torch.zeros_like(embedding)
        losses = torch.empty(hidden.shape[0])
        right = torch.empty(hidden.shape[0], dtype=torch.bool)
        for start in range(0, hidden.shape[0], LOSS_ROWS):
            part = slice(start, start + LOSS_ROWS)
            target, weight = targets[part, None], weights[part, None]
            logits = F.linear(hidden[part], low).float()
            highest = logits.amax(-1, keepdim=True)
            own = logits.gather(1, target)
            right[part] = (own == highest).squeeze(1)
            odds = (logits - highest).exp_()
            total = odds.sum(-1, keepdim=True)
            losses[part] = (total.log() + highest - own).squeeze(1)
            odds.mul_(weight / total).scatter_add_(1, target, -weight)
            gradient = odds.to(LOW)
            hidden_gradient[part] = gradient @ low
            embedding_gradient += gradient.t() @ hidden[part]
        context.save_for_backward(hidden_gradient, embedding_gradient)
        context.mark_non_differentiable(losses, right)
        return (losses * weights).sum(), losses, right

    @staticmethod
    def backward(
        context: torch.autograd.function.FunctionCtx, outer: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        """The stored gradients, times that of the sum."""
        hidden_gradient, embedding_gradient = context.saved_tensors
        return outer.to(LOW) * hidden_gradient, outer * embedding_gradient, None, None
