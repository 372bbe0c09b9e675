"""What adapters are trained on: `--objective`.

An objective takes the bank and one step's examples of every adapter (`batches[i]` are those of the
adapter of row group i) and gives the adapters' losses `[N]`. Their sum is differentiated, so each
must depend on its own examples alone. To add one: a function here and a line in `OBJECTIVES`.

`cross_entropy` computes the usual loss without the logits of a whole batch; one that needs logits
takes them from `batch.logits(bank)` (see `loss.py`).
"""

import torch

from utils.lora.bank import LoraBank
from utils.lora.examples import Batches, Example
from utils.lora.loss import Batch, cross_entropy

TEACHER_TOKENS = 64  # of a teacher's distribution; the rest is next to nothing
Taught = dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]]


def lm(bank: LoraBank, batches: Batches) -> torch.Tensor:
    """The mean loss over all tokens of the prompts (paper, section 3.2.2)."""
    return cross_entropy(bank, Batch(batches, bank.device))


def answer(bank: LoraBank, batches: Batches) -> torch.Tensor:
    """The mean loss over the answers' tokens alone."""
    return cross_entropy(bank, Batch(batches, bank.device, lambda example: example.labels_from))


def distill(bank: LoraBank, batches: Batches) -> torch.Tensor:
    """As `lm`, but a prompt without the passage learns what the model itself, without adapters and
    with the passage in its context, says of each token of the answer (context distillation,
    arXiv:2506.06266): the cross-entropy with the teacher's 64 best tokens, which is their KL
    divergence but for a constant."""
    says = taught(bank, [example for own in batches for example in own])
    batch = Batch(
        batches,
        bank.device,
        lambda example: example.labels_from if example.teacher else 1,
        lambda example: says[tuple(example.teacher.ids)] if example.teacher else None,
    )
    return cross_entropy(bank, batch)


distill.reads_teachers = True  # of the examples: they are made for it alone


def taught(bank: LoraBank, examples: list[Example]) -> Taught:
    """What the teachers of `examples` say of their answers' tokens: the best tokens and their
    shares, `[tokens, 64]` each, by the ids of the teacher's prompt; kept for the next pass."""
    teachers = {tuple(e.teacher.ids): e.teacher for e in examples if e.teacher}
    new = {ids: teacher for ids, teacher in teachers.items() if ids not in bank.taught}
    if new:
        answers = Batch([[t] for t in new.values()], bank.device, lambda e: e.labels_from)
        with torch.no_grad(), bank.cleared():
            logits = answers.logits(bank)
        likely, tokens = torch.topk(
            torch.log_softmax(logits, -1), min(TEACHER_TOKENS, len(logits.T))
        )
        lengths = [len(teacher.ids) - teacher.labels_from for teacher in new.values()]
        parts = (part.cpu().split(lengths) for part in (tokens, torch.softmax(likely, -1)))
        bank.taught |= zip(new, zip(*parts, strict=True), strict=True)
    return bank.taught


OBJECTIVES = {
    "lm": lm,
    "answer": answer,
    "distill": distill,
}
