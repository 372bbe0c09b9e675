"""What one training step of an adapter sees: labels are data."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A training prompt: its token ids, and the place of the answer's first token in them.

    A text without a question is an answer as a whole: its `labels_from` is 1, as its first token
    has nothing before it that could predict it.
    """

    ids: list[int]
    labels_from: int = 1


class Steps(Sequence):
    """The steps of one adapter: `batch_size` examples each, in their order, `epochs` times over."""

    def __init__(self, examples: Sequence[Example], batch_size: int, epochs: int):
        self.examples, self.batch_size, self.epochs = examples, batch_size, epochs
        self.per_epoch = -(-len(examples) // batch_size)

    def __len__(self) -> int:
        return self.per_epoch * self.epochs

    def __getitem__(self, step: int) -> Sequence[Example]:
        start = step % self.per_epoch * self.batch_size
        return self.examples[start : start + self.batch_size]


Batches = Sequence[Sequence[Example]]  # one step's examples of each adapter
