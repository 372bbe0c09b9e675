"""The attention weights of a model's last layer, for a few texts; nothing else changes."""

from copy import copy

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from utils.running import InputError

NAME = "last_layer_is_read"  # of an implementation of attention that the library calls


@torch.inference_mode()
def last_attention(
    model: PreTrainedModel, rows: list[list[int]], starts: list[int]
) -> list[torch.Tensor]:
    """How much each token of a row (token ids) from place `start` on attends to each token of the
    row in the last layer: `[heads, tokens from start, tokens]`, float32 on the CPU.

    The library's fast attention gives no weights. So the last layer alone, for this one call, hands
    its rotated queries and keys over here; no other layer's weights are computed. Raises
    `InputError` if a model does not let the library choose how it attends.
    """
    ids = [torch.tensor(row, dtype=torch.long, device=model.device) for row in rows]
    layers = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")]
    weights: list[torch.Tensor] = []

    def read(module, query, key, value, mask, scaling, softcap=None, **more):
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            places = slice(start, len(row))
            allowed = torch.ones(query.shape[2], key.shape[2], device=query.device).tril() > 0
            if mask is not None:  # a window; with additive masks 0 is what may be seen
                own = mask[min(number, len(mask) - 1), 0]
                allowed &= own if own.dtype == torch.bool else own == 0
            keys = key[number].float().repeat_interleave(query.shape[1] // key.shape[1], 0)
            scores = query[number, :, places].float() @ keys.mT * scaling
            scores = softcap * torch.tanh(scores / softcap) if softcap else scores
            scores = scores.masked_fill(~allowed[places], -torch.inf)
            weights.append(scores.softmax(-1)[..., : len(row)].cpu())
        # what the layer makes of this is not used
        return value.new_zeros(
            *query.shape[:1], query.shape[2], query.shape[1], value.shape[-1]
        ), None

    if layers:
        last = max(layers, key=lambda layer: layer.layer_idx)
        config, last.config = last.config, copy(last.config)
        last.config._attn_implementation = NAME
        AttentionInterface.register(NAME, read)
        try:  # padding on the right: no token sees it
            model.base_model(input_ids=pad_sequence(ids, True, 0), use_cache=False)
        finally:
            last.config = config
    if not weights:
        raise InputError(
            f"dragin reads the attention of the last layer, but {type(model).__name__} computes it "
            "in a way of its own; use --inference_method flare, or another model"
        )
    return weights
