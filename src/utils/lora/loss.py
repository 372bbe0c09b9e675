"""The loss of many adapters at once, without the logits of a whole batch.

Logits are the largest tensor of a step by far. As the output layer is frozen, the loss and its
gradient by the hidden states are computed together, some tokens at a time.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from utils.lora.bank import LoraBank
from utils.lora.examples import Batches, Example


def elements(device: torch.device) -> int:
    """How many logits to hold at a time: 128 MiB of float32 on a CPU, 1 GiB on a GPU."""
    return 1 << (28 if device.type == "cuda" else 25)


class Batch:
    """One step's examples of N adapters as tensors, padded on the right.

    Attention is causal, so padding needs no mask. Of the T tokens with a label: `places [T]` in the
    flattened `ids`, `labels [T]`, `owner [T]` (the number of their adapter), `weights [T]`
    (float64, 1 divided by the adapter's label tokens), and what the loss aims at: `aims [T, M]`,
    the label alone or a teacher's tokens, with their `shares [T, M]`, which sum to 1.
    """

    def __init__(
        self,
        batches: Batches,
        device: torch.device,
        first: Callable[[Example], int] = lambda _: 1,
        taught: Callable[[Example], tuple[torch.Tensor, torch.Tensor] | None] = lambda _: None,
    ):
        """`first(example)` is the place of its first label; all tokens from there on have one.
        `taught(example)` may give the aims and shares, `[tokens, M]` each, of these."""
        rows = max(map(len, batches))
        length = max(len(example.ids) for own in batches for example in own)
        ids = torch.zeros((len(batches) * rows, length), dtype=torch.long)
        labels, weights = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.float64)
        for number, own in enumerate(batches):
            label_tokens = sum(len(example.ids) - first(example) for example in own)
            for row, example in enumerate(own, start=number * rows):
                end = len(example.ids)
                ids[row, :end] = torch.tensor(example.ids)
                labels[row, : end - 1] = ids[row, 1:end]
                weights[row, first(example) - 1 : end - 1] = 1 / max(1, label_tokens)
        self.count, self.ids = len(batches), ids.to(device)
        self.places = weights.flatten().nonzero().squeeze(-1)
        self.owner = self.places // (rows * length)
        self.labels, self.weights = (t.flatten()[self.places] for t in (labels, weights))
        self.aims, self.shares = self.labels[:, None], torch.ones((len(self.labels), 1)).double()
        end = 0
        for example in (example for own in batches for example in own):
            start, end = end, end + len(example.ids) - first(example)
            if soft := taught(example):
                wider = max(0, soft[0].shape[1] - self.aims.shape[1])
                self.aims, self.shares = (F.pad(t, (0, wider)) for t in (self.aims, self.shares))
                self.aims[start:end], self.shares[start:end] = soft

    def hidden(self, bank: LoraBank) -> torch.Tensor:
        """The last hidden states `[T, width]` of the tokens that predict a label."""
        hidden = bank.model.base_model(input_ids=self.ids, use_cache=False).last_hidden_state
        return self._labelled(bank, hidden)

    def logits(self, bank: LoraBank) -> torch.Tensor:
        """The logits `[T, vocabulary]` of the labels, float32 at least."""
        logits = self._labelled(bank, bank.model(input_ids=self.ids, use_cache=False).logits)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def losses(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each adapter's mean `[N]` of the tokens' losses `[T]`."""
        none = torch.zeros(self.count, dtype=tokens.dtype, device=tokens.device)
        return none.index_add(0, self.owner, tokens * self.weights.to(tokens.dtype))

    def _labelled(self, bank: LoraBank, values: torch.Tensor) -> torch.Tensor:
        """The tokens with a label, on the GPU on which a model over several GPUs ends."""
        device = bank.model.get_output_embeddings().weight.device
        for name in ("places", "owner", "labels", "aims", "shares", "weights"):
            setattr(self, name, getattr(self, name).to(device))
        return values.to(device).flatten(0, 1)[self.places]


def cross_entropy(bank: LoraBank, batch: Batch) -> torch.Tensor:
    """Each adapter's mean cross-entropy `[N]` over its label tokens."""
    if not bank.has_plain_head:
        likely = torch.log_softmax(batch.logits(bank), -1).gather(-1, batch.aims)
        return batch.losses(-(likely * batch.shares.to(likely.dtype)).sum(-1))
    hidden, head = batch.hidden(bank), bank.model.get_output_embeddings().weight
    wide = torch.promote_types(head.dtype, torch.float32)
    soft = batch.aims, batch.shares.to(wide)
    return LinearCrossEntropy.apply(
        hidden, head, *soft, batch.weights.to(wide), batch.owner, batch.count
    )


class LinearCrossEntropy(torch.autograd.Function):
    """`weights[t] * cross_entropy(hidden[t] @ head.T, labels[t])`, summed for each adapter: `[N]`.

    `hidden [T, width]`, which alone has a gradient, `head [vocabulary, width]`, `labels [T, M]`,
    each counting by its share in `shares [T, M]`, `weights [T]`, `owner [T]` (the adapter of each
    token), `count` N. Logits are float32 at least.
    """

    @staticmethod
    def forward(ctx, hidden, head, labels, shares, weights, owner, count):
        """The losses; the gradient is computed here too and kept for `backward`."""
        gradient = torch.empty_like(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.zeros(count, dtype=wide, device=hidden.device)
        size = max(1, elements(head.device) // len(head))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = hidden[part] @ head.T  # [size, vocabulary]
            softmax = torch.softmax(logits, -1, dtype=wide)
            chance = softmax.gather(-1, labels[part]).clamp_min(torch.finfo(wide).tiny)
            surprise = -(chance.log() * shares[part]).sum(-1)
            losses.index_add_(0, owner[part], surprise * weights[part])
            # the gradient by the logits: softmax minus the label's share, times the token's weight
            softmax.scatter_add_(-1, labels[part], -shares[part])
            gradient[part] = (softmax.to(hidden.dtype) @ head) * weights[part, None]
        ctx.save_for_backward(gradient, owner)
        return losses

    @staticmethod
    def backward(ctx, output_gradient):
        """The gradient by `hidden` alone."""
        gradient, owner = ctx.saved_tensors
        return gradient * output_gradient.to(gradient.dtype)[owner, None], *[None] * 6
