"""What adapters are trained on: `--objective`.

An objective takes the bank and one step's examples of every adapter (`batches[i]` are those of the
adapter of row group i) and gives the adapters' losses `[N]`. Their sum is differentiated, so each
must depend on its own examples alone. To add one: a function here and a line in `OBJECTIVES`.

`cross_entropy` computes the usual loss without the logits of a whole batch; one that needs logits
takes them from `batch.logits(bank)` (see `loss.py`).
"""

import torch

from utils.lora.bank import LoraBank
from utils.lora.examples import Batches
from utils.lora.loss import Batch, cross_entropy


def lm(bank: LoraBank, batches: Batches) -> torch.Tensor:
    """The mean loss over all tokens of the prompts (paper, section 3.2.2)."""
    return cross_entropy(bank, Batch(batches, bank.device))


def answer(bank: LoraBank, batches: Batches) -> torch.Tensor:
    """The mean loss over the answers' tokens alone."""
    return cross_entropy(bank, Batch(batches, bank.device, lambda example: example.labels_from))


OBJECTIVES = {
    "lm": lm,
    "answer": answer,
}
