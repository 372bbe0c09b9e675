"""Texts by a model, side by side: greedy or sampled, each row as if it were alone."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaModel, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer

from utils.prompting import same_tokens

# what the library calls the keys and values; its older versions had the second name
CACHE = "cache" if "cache" in signature(LlamaModel.forward).parameters else "past_key_values"
SEGMENT = 32  # tokens after which texts that have ended leave, and others take their places
LEAST_SHARED = 32  # tokens of a prompt that must have been read before, else all of it is read
PIECE = {"cpu": 512, "cuda": 8192}  # tokens, filled up, that are read at once after shared ones


class RowProcessor(LogitsProcessor):
    """A step of a generation; `rows` are the prompts, by their places, that are still continued.
    `written` are the texts' tokens up to this segment; its own ones are `input_ids[:, before:]`."""

    rows: Sequence[int] = ()
    before: int = 0
    written: Sequence[list[int]] = ()


class SeededSampling(RowProcessor):
    """Sampling whose random numbers belong to the row, not to the batch it happens to be in.

    To the `top_k` highest scores, divided by the temperature, Gumbel noise from the row's own seed
    is added: the greedy choice that follows is an exact sample from the softmax.
    """

    def __init__(self, seeds: list[int], temperature: float, top_k: int):
        self.temperature, self.top_k = temperature, top_k
        self.generators: list[torch.Generator] = []
        for seed in seeds:
            self.add(seed)
        self.rows = range(len(seeds))

    def add(self, seed: int) -> None:
        """One more row."""
        self.generators.append(torch.Generator().manual_seed(seed))

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

    def keep(self, places: torch.Tensor, start: int) -> None:
        """Keep these rows alone, from token `start` on."""
        self.keys, self.values = (s[places, :, start:] for s in (self.keys, self.values))
        self.room = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows alone."""
        self.keep(indices, 0)

    def join(self, others: Sequence["RoomyLayer"], length: int) -> None:
        """Put the rows of `others` beneath; all of them end at `length`, zeros come before."""
        layers = [self, *others]
        self.room = tuple(
            torch.cat([pad(one, (0, 0, length - one.shape[-2], 2 * SEGMENT)) for one in own])
            for own in ([one.keys for one in layers], [one.values for one in layers])
        )
        self.keys, self.values = (room[..., :length, :] for room in self.room)


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache for `model`; layers with a window, which stay small, are the library's."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    return cache


def is_roomy(cache: DynamicCache) -> bool:
    """Whether every layer keeps all tokens; one with a window cannot be moved or joined."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


Begun = tuple[int, int]  # of a prompt: how many tokens it shares, and with which text


class Beginnings:
    """What many prompts begin with, read once: the keys and values of `texts` (token ids), of which
    other prompts share the first tokens. For a model without adapters."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[list[int]]):
        self.model, self.texts = model, texts

    @cached_property
    @torch.inference_mode()
    def read(self) -> list[tuple[list[int], DynamicCache]]:
        """The texts that are long enough, with their keys and values; none if they cannot move."""
        found = []
        for ids in self.texts:
            cache = roomy_cache(self.model)
            if len(ids) >= LEAST_SHARED and is_roomy(cache):
                self.model.base_model(torch.tensor([ids]).to(self.model.device), **{CACHE: cache})
                found.append((ids, cache))
        return found

    def of(self, prompt: list[int]) -> Begun:
        """The text that shares most with `prompt`, of which two tokens at least remain to read."""
        shared = [same_tokens(ids, prompt[:-2]) for ids, _ in self.read]
        most = max(shared, default=0)
        return (most, shared.index(most)) if most >= LEAST_SHARED else (0, 0)

    def cache(self, begun: Sequence[Begun]) -> DynamicCache:
        """The keys and values of rows that begin so; zeros come before shorter ones."""
        cache, longest = roomy_cache(self.model), max(begun)[0]
        for number, layer in enumerate(cache.layers if longest else ()):
            own = [(self.read[text][1].layers[number], length) for length, text in begun]
            keys = [pad(one.keys[..., :n, :], (0, 0, longest - n, 0)) for one, n in own]
            values = [pad(one.values[..., :n, :], (0, 0, longest - n, 0)) for one, n in own]
            layer.update(torch.cat(keys), torch.cat(values))
        return cache


def pieces(lengths: Sequence[int], most: int) -> list[list[int]]:
    """The places of prompts of which so many tokens are to be read, in pieces of about `most`
    tokens: the longest first, so that little is filled up."""
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= most:
            found[-1].append(place)
        else:
            found.append([place])
    return found


class Batch:
    """Texts that are written side by side: the numbers of their `rows`, `ids` and `mask`
    `[rows, length]`, filled up on the left, and the keys and values of all but the last token.
    After a shared beginning, too, a row may be filled up."""

    def __init__(self, model: PreTrainedModel, pad_id: int, beginnings: Beginnings | None = None):
        self.model, self.pad_id = model, pad_id
        self.beginnings = beginnings or Beginnings(model, [])
        self.rows: list[int] = []

    def takes_more(self) -> bool:
        """Whether others can join those that are written, if any."""
        return not self.rows or is_roomy(self.cache)

    def join(self, rows: list[int], prompts: list[list[int]]) -> None:
        """Begin these texts, too."""
        begun, parts = [self.beginnings.of(one) for one in prompts], [list(range(len(rows)))]
        if is_shared := max(begun)[0] > 0:
            left = [
                len(prompt) - length for prompt, (length, _) in zip(prompts, begun, strict=True)
            ]
            parts = pieces(left, PIECE.get(self.model.device.type, max(PIECE.values())))
        batches = [self] if self.rows else []
        for places in parts:
            batch = Batch(self.model, self.pad_id, self.beginnings)
            batch._begin(*([own[place] for place in places] for own in (rows, prompts, begun)))
            if self.rows or is_shared:  # else all is read with the first step
                batch._read()
            batches.append(batch)
        self._unite(batches)

    def _begin(self, rows: list[int], prompts: list[list[int]], begun: list[Begun]) -> None:
        """These rows, with what they share in the cache."""
        pairs = [(prompt, length) for prompt, (length, _) in zip(prompts, begun, strict=True)]
        shared = self._filled([prompt[:length] for prompt, length in pairs])
        own = self._filled([prompt[length:] for prompt, length in pairs])
        self.ids, self.mask = (torch.cat(both, 1) for both in zip(shared, own, strict=True))
        self.rows, self.cache = rows, self.beginnings.cache(begun)

    def _filled(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [torch.tensor(one, dtype=torch.long, device=self.model.device) for one in prompts]
        mask = pad_sequence([torch.ones_like(part) for part in parts], True, 0, "left")
        return pad_sequence(parts, True, self.pad_id, "left"), mask

    def _read(self) -> None:
        """Into the cache, the keys and values of the other tokens but the last ones."""
        places, start = (self.mask.cumsum(-1) - 1).clamp_min(0), self.cache.get_seq_length()
        self.model.base_model(
            input_ids=self.ids[:, start:-1],
            attention_mask=self.mask[:, :-1],
            position_ids=places[:, start:-1],
            use_cache=True,
            **{CACHE: self.cache},
        )

    def _unite(self, batches: Sequence["Batch"]) -> None:
        """Be the rows of all of these, in sequence."""
        first, *others = batches
        most = max(batch.ids.shape[1] for batch in batches)
        for number, layer in enumerate(first.cache.layers if others else ()):
            layer.join([other.cache.layers[number] for other in others], most - 1)
        for name, fill in (("ids", self.pad_id), ("mask", 0)):
            own = [getattr(batch, name) for batch in batches]
            own = [pad(one, (most - one.shape[1], 0), value=fill) for one in own]
            setattr(self, name, torch.cat(own))
        self.rows, self.cache = [row for batch in batches for row in batch.rows], first.cache

    def write(self, tokens: int, processors: list[RowProcessor]) -> torch.Tensor:
        """Add at most so many tokens to each text, and give them: `[rows, tokens]`."""
        before = self.ids.shape[1]
        for one in processors:
            one.rows, one.before = self.rows, before
        self.ids = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            **{CACHE: self.cache},
            max_new_tokens=tokens,
            do_sample=False,
            logits_processor=processors,
        )
        new = self.ids[:, before:]
        self.mask = torch.cat([self.mask, torch.ones_like(new)], 1)
        return new

    def keep(self, places: torch.Tensor) -> None:
        """Keep the texts at these places alone."""
        self.rows = [self.rows[place] for place in places.tolist()]
        if not self.rows:
            return
        self.ids, self.mask = self.ids[places], self.mask[places]
        if is_roomy(self.cache):
            start = int(self.mask.argmax(1).min())  # what only longer texts needed
            self.ids, self.mask = self.ids[:, start:], self.mask[:, start:]
            for layer in self.cache.layers:
                layer.keep(places, start)
        else:
            self.cache.batch_select_indices(places)


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
    width: int | None = None,
    more: Callable[[int, str], tuple[list[int], int] | None] | None = None,
    beginnings: Beginnings | None = None,
) -> list[str]:
    """The continuation of each prompt (token ids) as text, without special tokens, as many side by
    side as `width` (None: all). Greedy at temperature 0; above it sampled, with one seed per
    prompt. `watch` sees each step; `held` puts around the sampling what holds the texts to a form.
    Every 32 tokens texts that have ended leave, and those that wait take their places; `leave` is
    told the places (on the CPU) of the rows that stay. `more(row, text)` is told each text that has
    ended and may give one more prompt with its seed, which gets the next row's number. What a
    prompt shares with `beginnings` is not read again."""
    sampling = SeededSampling(seeds, temperature, top_k) if temperature else None
    processors = [one for one in (watch, held(sampling) if held else sampling) if one]
    stops = model.generation_config.eos_token_id
    stops = torch.tensor(stops if isinstance(stops, list) else [stops], device=model.device)
    waiting, batch = deque(enumerate(prompts)), Batch(model, tokenizer.pad_token_id, beginnings)
    written: list[list[int]] = [[] for _ in prompts]
    for one in processors:
        one.written = written
    texts = [""] * len(prompts)
    while batch.rows or waiting:
        if waiting and batch.takes_more() and (room := (width or len(prompts)) - len(batch.rows)):
            joining = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            batch.join(*map(list, zip(*joining, strict=True)))
        if sampling:
            sampling.rows = batch.rows
        left = max_new_tokens - min(len(written[row]) for row in batch.rows)
        new = batch.write(min(SEGMENT, left), processors)
        ended = torch.isin(new, stops).any(-1).tolist()
        for place, (row, tokens) in enumerate(zip(batch.rows, new.tolist(), strict=True)):
            written[row] += tokens
            ended[place] |= len(written[row]) >= max_new_tokens
        stay = torch.tensor([place for place, end in enumerate(ended) if not end])
        done = [row for row, end in zip(batch.rows, ended, strict=True) if end]
        if done:
            batch.keep(stay)
        if leave and done and batch.rows:
            leave(stay)
        for row in done:
            kept = written[row][:max_new_tokens]
            texts[row] = tokenizer.batch_decode([kept], skip_special_tokens=True)[0]
            if more and (another := more(row, texts[row])):
                waiting.append((len(written), another[0]))
                written.append([])
                texts.append("")
                if sampling:
                    sampling.add(another[1])
    return texts
