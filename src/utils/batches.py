"""A batch of prompts and what follows each, with every row's own adapter in the model."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.generation import RowProcessor, generate
from utils.lora.memory import in_halves
from utils.running import InputError


class FiniteLogits(RowProcessor):
    """Watches a batch: `bad` are the prompts whose logits were not always finite. `start` is the
    place of the first prompt that is generated now: a batch may go in parts."""

    start = 0

    def __init__(self) -> None:
        self.bad: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores [rows, vocabulary]` as they are; a token that a model rules out has -inf."""
        fine = (scores < torch.inf).all(-1).tolist()
        pairs = zip(self.rows, fine, strict=True)
        self.bad |= {self.start + row for row, good in pairs if not good}
        return scores

    def check(self, batch: list[int], merged: bool) -> None:
        """Raise `InputError` with the number of the first question whose logits were not finite."""
        if bad := [batch[row] for row in sorted(self.bad)]:
            what = "with the merged adapters of " if merged else "for "
            remedy = "use a smaller --merge_scale, or " if merged else "use "
            raise InputError(
                f"the model's output {what}question {bad[0]} (data_{bad[0]}) is not finite; "
                f"{remedy}--dtype float32"
            )


def answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    watch: FiniteLogits,
    use: Callable[[list[int]], None] | None = None,
    keep: Callable[[torch.Tensor], None] | None = None,
) -> list[tuple[str, list[int]]]:
    """What follows each prompt, greedily: the text and its tokens. One batch or, if the GPU's
    memory does not hold it, in halves. `use` is told which prompts (in sequence) go next and puts
    their adapters into the model, `keep` which rows of these stay (see `generate`)."""

    def answer(rows: list[int]) -> list[tuple[str, list[int]]]:
        if use:
            use(rows)
        watch.start = rows[0]
        asked = [prompts[row] for row in rows]
        texts = generate(model, tokenizer, asked, max_new_tokens, watch=watch, leave=keep)
        return list(zip(texts, watch.written, strict=True))

    remedy = "use a smaller --max_new_tokens, or fewer passages"
    return in_halves(answer, list(range(len(prompts))), "questions", remedy)
