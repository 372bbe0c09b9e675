"""Documents packed into full rows of one length, with what the training loop must know of them."""

from dataclasses import dataclass

import numpy
import torch
from transformers import PreTrainedTokenizerBase

# What a token counts in the loss: (one of the prompt, one of an answer). Passages about known
# entities are there to be learnt, so that their prompts count in full.
TASK_WEIGHTS = {
    "context": (0.3, 2.0),
    "closed_book": (0.3, 1.5),
    "reading": (1.0, 1.0),
    "plain": (1.0, 1.0),
    "rewrite": (0.3, 0.7),
    "question_list": (0.3, 0.7),
}
TASKS = tuple(TASK_WEIGHTS)


@dataclass
class Packed:
    """One step's tokens, all `[rows, length]`; a token's target is the next one of its document."""

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor  # of the target; 0 on padding and at a document's end
    answers: torch.Tensor  # the task's index if the target belongs to an answer, else -1
    documents: torch.Tensor  # number of the token's document, -1 on padding


def pack(
    documents: list[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    length: int,
) -> Packed:
    """Pack (task, document)s, the longest first, each into the first row that has room.

    Those that fit nowhere are left out: the caller offers about as much as the rows hold.
    """
    shape = (rows, length)
    ids = numpy.full(shape, tokenizer.pad_token_id, dtype=numpy.int64)
    targets, numbers = ids.copy(), numpy.full(shape, -1, dtype=numpy.int64)
    weights, answers = numpy.zeros(shape, dtype=numpy.float32), numbers.copy()
    begin, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|eot|>"])
    texts = [document for _, document in documents]
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    used = [0] * rows
    for number in sorted(range(len(tokens)), key=lambda n: -len(tokens[n])):
        own, task = tokens[number], documents[number][0]
        row = next((r for r in range(rows) if used[r] + len(own) <= length), None)
        if row is None:
            continue
        start = used[row]
        used[row] += len(own)
        ids[row, start : used[row]] = own
        numbers[row, start : used[row]] = number
        in_answer = False
        for offset, token in enumerate(own[:-1]):
            in_answer = token == begin or (in_answer and token != end)
            column = start + offset
            targets[row, column] = own[offset + 1]
            weights[row, column] = TASK_WEIGHTS[task][in_answer]
            answers[row, column] = TASKS.index(task) if in_answer else -1
    arrays = (ids, targets, weights, answers, numbers)
    return Packed(*(torch.from_numpy(array) for array in arrays))
