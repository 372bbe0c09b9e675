"""The loss in parts, and as many adapters as fit. That training equals peft: test_lora.py."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model
from stage_runs import refused

from utils.lora import loss
from utils.lora.bank import LoraBank, stack
from utils.lora.examples import Example, Steps
from utils.lora.loss import LinearCrossEntropy
from utils.lora.memory import bytes_kept, training_bytes
from utils.lora.objectives import OBJECTIVES, lm
from utils.lora.training import train_adapters, train_as_fits

PROMPTS = [[[3, 4, 5, 6], [7, 8, 9]], [[10, 11, 12]], [[13, 14], [15, 16, 17]]]
PROMPTS += [[[18, 19, 20, 21]], [[22, 23]]]
WORKS = [[Example(ids) for ids in own] for own in PROMPTS]
STEPS = [Steps(own, 1, 2) for own in WORKS]
SETTINGS = (lm, 1e-2)  # objective, learning rate


@pytest.mark.parametrize("elements", [1, 40, 10_000])
def test_the_loss_in_parts_is_the_loss_with_its_gradient(monkeypatch, elements):
    monkeypatch.setattr(loss, "elements", lambda device: elements)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64)
    labels, weights = torch.randint(11, (7,)), torch.rand(7, dtype=torch.float64)
    owner = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    tokens = F.cross_entropy(hidden @ weight.T, labels, reduction="none") * weights
    expected = torch.zeros(3, dtype=torch.float64).index_add(0, owner, tokens)
    hard = labels[:, None], torch.ones(7, 1, dtype=torch.float64)
    got = LinearCrossEntropy.apply(hidden, weight, *hard, weights, owner, 3)
    torch.testing.assert_close(got, expected)
    factors = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    wanted, found = (
        torch.autograd.grad((factors * value).sum(), hidden)[0] for value in (expected, got)
    )
    torch.testing.assert_close(found, wanted)


def test_a_model_that_changes_its_logits_is_trained_through_its_own_forward_pass(monkeypatch):
    model = tiny_model()
    forward = type(model).forward

    def capped(self, *arguments, **keywords):
        output = forward(self, *arguments, **keywords)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    bank = LoraBank(model, 2, 32)
    assert bank.has_plain_head
    base = bank.new_base_adapter(0)
    plain = train_adapters(bank, base, STEPS, *SETTINGS)
    monkeypatch.setattr(type(model), "forward", capped)
    del bank.has_plain_head  # looked at once for a model
    other = train_adapters(bank, base, STEPS, *SETTINGS)
    assert not bank.has_plain_head
    name = next(iter(base))
    assert (plain[0][name][1] - other[0][name][1]).abs().max() > 1e-4


def test_what_does_not_fit_is_trained_in_halves_to_the_same_adapters(monkeypatch, capsys):
    bank = LoraBank(tiny_model().double(), 2, 32)
    base = {n: (A.double(), B.double()) for n, (A, B) in bank.new_base_adapter(0).items()}
    whole = train_adapters(bank, base, STEPS, *SETTINGS)
    sizes = []

    def small(bank, batches):
        sizes.append(len(batches))
        if len(batches) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lm(bank, batches)

    room = 1
    parts = train_as_fits(bank, base, STEPS, small, SETTINGS[1])
    assert sizes[:4] == [5, 2, 1, 1] and len(sizes) == 2 + sum(map(len, STEPS))
    assert "5 adapters do not fit into the GPU's memory: 2 at a time" in capsys.readouterr().out
    for one, other in zip(whole, parts, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-12)
    room, words = 0, "does not hold one of the adapters; use a"
    refused(words, train_as_fits, bank, base, STEPS, small, SETTINGS[1])


def test_distillation_is_the_divergence_from_the_reading_model_with_its_dense_gradient():
    bank = LoraBank(tiny_model().double(), 2, 32)
    teacher = Example([1, 50, 51, 52, 7, 8, 9], 4)
    batches = [[Example([3, 4, 5, 6])], [Example([3, 7, 8, 9], 1, teacher)]]
    adapter = {n: (A.double(), 0.1 * torch.randn_like(B.double()))
               for n, (A, B) in bank.new_base_adapter(0).items()}  # fmt: skip
    leaves = {n: tuple(t.requires_grad_() for t in pair) for n, pair in
              stack([adapter] * 2, bank.devices(), torch.float64).items()}  # fmt: skip
    bank.set(leaves)
    tensors = [tensor for pair in leaves.values() for tensor in pair]
    losses = OBJECTIVES["distill"](bank, batches)
    found = torch.autograd.grad(losses.sum(), tensors)
    with bank.cleared(), torch.no_grad():
        says = bank.model(torch.tensor([teacher.ids])).logits[0, 3:6].log_softmax(-1)
    best, places = says.topk(64)
    logits = bank.model(torch.tensor([batches[0][0].ids, batches[1][0].ids])).logits
    kl = -(best.softmax(-1) * logits[1, :3].log_softmax(-1).gather(-1, places)).sum(-1)
    plain = F.cross_entropy(logits[0, :3], torch.tensor([4, 5, 6]))
    torch.testing.assert_close(losses, torch.stack([plain, kl.mean()]))
    for one, other in zip(found, torch.autograd.grad(plain + kl.mean(), tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_the_memory_formula_counts_model_adapters_and_what_autograd_keeps_of_each_layer():
    bank = LoraBank(tiny_model(), 2, 32)
    weights = sum(4 * p.numel() for p in bank.model.parameters())
    sizes = [training_bytes(bank, WORKS, 1, count) for count in (0, 1, 5)]
    beside = training_bytes(bank, WORKS, 1, 1, neighbours=2)  # one of rank 6 with its gradient
    assert sizes[0] == weights + 12 * loss.elements(torch.device("cpu"))
    numbers = sum(A.numel() + B.numel() for A, B in bank.new_base_adapter(0).values())
    kept = bytes_kept(bank, 2)
    assert sizes[1] - sizes[0] == 20 * numbers + 4 * kept  # 4: the longest prompt
    assert beside - sizes[0] == (20 + 8 * 3) * numbers + 4 * bytes_kept(bank, 6)
    assert sizes[2] - sizes[0] == 5 * (sizes[1] - sizes[0])
    assert all(layer.A is None for layer in bank.layers.values())
    model, config = tiny_model(), bank.model.config
    model.model.layers = model.model.layers[:1]
    least = 4 * (3 * config.intermediate_size + 2 * config.hidden_size)  # gate, up, their product
    assert least < kept - bytes_kept(LoraBank(model, 2, 32), 2) < 20 * least


def test_an_objective_that_mixes_adapters_and_a_training_that_overflows_are_refused():
    bank = LoraBank(tiny_model(), 2, 32)
    base = bank.new_base_adapter(0)
    with pytest.raises(ValueError, match=r"one loss per adapter, not \(\)"):
        train_adapters(bank, base, STEPS, lambda *a: lm(*a).mean(), 1e-2)
    words = "not finite for 5 of 5 adapters; use a smaller"  # before anything is saved
    refused(words, train_adapters, bank, base, STEPS, lm, 1e30)
