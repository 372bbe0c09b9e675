"""What one training step of an adapter sees: labels are data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A training prompt: its token ids, and the place of the answer's first token in them.

    A text without a question is an answer as a whole: its `labels_from` is 1, as its first token
    has nothing before it that could predict it. `teacher` is the same question and answer with the
    passage in the context, of a prompt that has none: what a reader of the passage would see.
    """

    ids: list[int]
    labels_from: int = 1
    teacher: "Example | None" = None


class Steps(Sequence):
    """The steps of one adapter: `batch_size` examples each, `epochs` times over; never a list of
    all. They are in their order, or, with `seed`, in another one in every epoch."""

    def __init__(
        self, examples: Sequence[Example], batch_size: int, epochs: int, seed: int | None = None
    ):
        self.examples, self.batch_size, self.epochs = examples, batch_size, epochs
        self.per_epoch, self.seed = -(-len(examples) // batch_size), seed
        self.shuffled = -1, examples  # an epoch, and its order

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __getitem__(self, step: int) -> Sequence[Example]:
        if step >= len(self):
            raise IndexError(step)
        epoch, place = divmod(step, self.per_epoch)
        if self.seed is not None and self.shuffled[0] != epoch:
            order = list(self.examples)
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            self.shuffled = epoch, order
        start = place * self.batch_size
        return self.shuffled[1][start : start + self.batch_size]


Batches = Sequence[Sequence[Example]]  # one step's examples of each adapter
