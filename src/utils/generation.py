"""Texts by a model, batch by batch: greedy or sampled, each row as if it were alone."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer

SEGMENT = 32  # tokens after which texts that have ended leave the batch


class RowProcessor(LogitsProcessor):
    """A step of a generation; `rows` are the prompts, by their places, that are still continued.
    `width` are the tokens before the texts, `written` the texts' tokens, which each segment adds.
    """

    rows: Sequence[int] = ()
    width: int = 0
    written: Sequence[list[int]] = ()


class SeededSampling(RowProcessor):
    """Sampling whose random numbers belong to the row, not to the batch it happens to be in.

    To the `top_k` highest scores, divided by the temperature, Gumbel noise from the row's own seed
    is added: the greedy choice that follows is an exact sample from the softmax.
    """

    def __init__(self, seeds: list[int], temperature: float, top_k: int):
        self.temperature, self.top_k = temperature, top_k
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.rows = range(len(seeds))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]` of the next token -> noisy scores of the same shape."""
        return self.noisy(scores, self.rows)

    def noisy(self, scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The same for these rows alone, whose `scores` are given."""
        top_k = min(self.top_k, scores.shape[-1])
        best, places = torch.topk(scores.float() / self.temperature, top_k)  # [rows, top_k]
        uniform = torch.stack([torch.rand(top_k, generator=self.generators[row]) for row in rows])
        noise = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float32).tiny)))
        result = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return result.scatter(-1, places, best + noise.to(scores.device))


class RoomyLayer(DynamicLayer):
    """The keys and values of a layer, `[rows, heads, length, size]`, in memory that has room for
    more tokens. The library's layer copies all of them for every token, which takes longer than
    attention itself and breaks up the memory."""

    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append these and give all of them."""
        new, start = (key_states, value_states), self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            larger = [(*states.shape[:-2], end + 2 * SEGMENT, states.shape[-1]) for states in new]
            self.room = tuple(s.new_empty(shape) for s, shape in zip(new, larger, strict=True))
            if start:
                self._fill(0, start, (self.keys, self.values))
        self.device, self.is_initialized = key_states.device, True
        self._fill(start, end, new)
        self.keys, self.values = (room[..., :end, :] for room in self.room)
        return self.keys, self.values

    def _fill(self, start: int, end: int, states: Sequence[torch.Tensor]) -> None:
        for room, own in zip(self.room, states, strict=True):
            room[..., start:end, :] = own

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone."""
        super().batch_select_indices(indices)
        self.room = None


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for `model`; layers with a window, which stay small, are the library's."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    seeds: list[int] | None = None,
    temperature: float = 0.0,
    top_k: int = 50,
    watch: RowProcessor | None = None,
    held: Callable[[SeededSampling | None], RowProcessor] | None = None,
    leave: Callable[[torch.Tensor], None] | None = None,
) -> list[str]:
    """The continuation of each prompt (token ids) as text, without special tokens, as one batch.
    Greedy at temperature 0; above it sampled, with one seed per prompt. `watch` sees each step;
    `held` puts around the sampling what holds the texts to a form. Texts that have ended leave
    the batch every 32 tokens; `leave` is told the places (on the CPU) of the rows that stay."""
    parts = [torch.tensor(prompt, dtype=torch.long, device=model.device) for prompt in prompts]
    ids = pad_sequence(parts, True, tokenizer.pad_token_id, "left")
    mask = pad_sequence([torch.ones_like(part) for part in parts], True, 0, "left")
    sampling = SeededSampling(seeds, temperature, top_k) if temperature else None
    processors = [one for one in (watch, held(sampling) if held else sampling) if one]
    written: list[list[int]] = [[] for _ in prompts]
    rows, cache, left = list(range(len(prompts))), roomy_cache(model), max_new_tokens
    stops = model.generation_config.eos_token_id
    stops = torch.tensor(stops if isinstance(stops, list) else [stops], device=ids.device)
    told = [one for one in (*processors, sampling) if one]
    for one in told:
        one.width, one.written = ids.shape[1], written
    while rows and left > 0:
        for one in told:
            one.rows = rows
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            cache=cache,
            max_new_tokens=min(SEGMENT, left),
            do_sample=False,
            logits_processor=processors,
        )
        new, left = output[:, ids.shape[1] :], left - SEGMENT
        for row, tokens in zip(rows, new.tolist(), strict=True):
            written[row] += tokens
        open_ = (~torch.isin(new, stops).any(-1)).nonzero()[:, 0].cpu()
        rows = [rows[place] for place in open_.tolist()]
        ids, mask = output[open_], torch.cat([mask, torch.ones_like(new)], 1)[open_]
        if 0 < len(rows) < len(new):
            cache.batch_select_indices(open_)
            if leave:
                leave(open_)
    return tokenizer.batch_decode(written, skip_special_tokens=True)
