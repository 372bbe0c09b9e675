"""The bank against its oracle: peft, one adapter at a time."""

import itertools
import json
from functools import partial

import peft
import pytest
import torch
import transformers
from adapter_runs import random_adapter
from conftest import FAMILIES, tiny_model
from safetensors.torch import load_file, save_file
from stage_runs import refused

from utils.lora.bank import TARGET_MODULES, LoraBank
from utils.lora.examples import Example, Steps
from utils.lora.merges import total
from utils.lora.objectives import OBJECTIVES
from utils.lora.training import train_adapters
from utils.store.base import open_base_adapter
from utils.store.folders import load_adapter, save_adapter


def random_examples(counts: list[int], seed: int = 3) -> list[list[Example]]:
    """Examples of uneven lengths (5 to 23), `counts[i]` for adapter i, answers anywhere in them."""
    generator = torch.Generator().manual_seed(seed)

    def one() -> Example:
        length = int(torch.randint(5, 24, (), generator=generator))
        ids = torch.randint(3, 90, (length,), generator=generator).tolist()
        return Example(ids, int(torch.randint(1, length, (), generator=generator)))

    return [[one() for _ in range(count)] for count in counts]


def train_with_peft(model, base_folder, prompts, learning_rate, epochs, batch_size, firsts=None):
    """One passage as the published software trains it, without its padding to 3000 tokens."""
    firsts = firsts or [0] * len(prompts)  # the place of each prompt's first label
    how = {"is_trainable": True, "autocast_adapter_dtype": False}
    model = peft.PeftModel.from_pretrained(model, base_folder, **how)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.to(next(model.base_model.parameters()).dtype)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    for _ in range(epochs):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            length = max(map(len, batch))
            ids = torch.tensor([p + [0] * (length - len(p)) for p in batch])
            mask = torch.tensor([[1] * len(p) + [0] * (length - len(p)) for p in batch])
            labels = ids.masked_fill(mask == 0, -100)
            for row, first in enumerate(firsts[start : start + batch_size]):
                labels[row, :first] = -100
            labels = labels[:, 1:].flatten()
            optimizer.zero_grad()
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
    return peft.get_peft_model_state_dict(model)


def model_in(dtype: torch.dtype, architecture: str, tied: bool):
    """A tiny model that computes in `dtype` throughout."""
    model = tiny_model(architecture, tied).to(dtype)
    # the library's norms compute in float32 even in float64; AdamW blows that rounding up
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            gemma = hasattr(module, "eps")
            epsilon = module.eps if gemma else module.variance_epsilon
            module.forward = partial(exact_norm, module.weight + gemma, epsilon)
    return model


def exact_norm(weight: torch.Tensor, epsilon: float, x: torch.Tensor) -> torch.Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


def paired(adapter, oracle):
    """Yield every tensor of an adapter with peft's, which has no other."""
    assert len(oracle) == 2 * len(adapter)
    for name, (A, B) in adapter.items():
        yield A, oracle[f"base_model.model.{name}.lora_A.weight"]
        yield B, oracle[f"base_model.model.{name}.lora_B.weight"]


def compare_with_peft(folder, architecture, dtype, rank, batch, counts, tied=True, objective="lm"):
    """Yield every adapter's (bank, peft) tensors after three epochs from the same base."""
    torch.manual_seed(0)
    examples = random_examples(counts)
    bank = LoraBank(model_in(dtype, architecture, tied), rank, alpha=4 * rank)
    base = open_base_adapter(bank, folder / "base", "tiny", seed=1)
    base = {name: (A.to(dtype), B.to(dtype)) for name, (A, B) in base.items()}
    steps = [Steps(own, batch, 3) for own in examples]
    mine = train_adapters(bank, base, steps, OBJECTIVES[objective], 3e-3)
    for adapter, own in zip(mine, examples, strict=True):
        firsts = [example.labels_from for example in own] if objective == "answer" else None
        model, prompts = model_in(dtype, architecture, tied), [example.ids for example in own]
        oracle = train_with_peft(model, folder / "base", prompts, 3e-3, 3, batch, firsts)
        yield from paired(adapter, oracle)


GRID = itertools.product(
    ("llama", "qwen2"), (1, 2, 8), (1, 3), ([5], [2, 5], [5, 2, 5, 3, 1, 4, 6]), ("lm",),
    (True, False),
)  # fmt: skip


@pytest.mark.parametrize("kind, rank, batch, counts, objective, tied", [
    ("llama", 2, 1, [5, 2, 5, 3, 1, 4, 6], "lm", True), ("qwen2", 2, 3, [4, 2, 7], "lm", True),
    ("llama", 1, 3, [5], "lm", True), ("qwen2", 8, 1, [3, 5], "lm", True),
    ("llama", 8, 3, [1, 4, 5, 5, 2, 3, 7], "lm", True), ("qwen2", 2, 3, [4, 2, 7], "answer", True),
    *((one, 2, 1, [3, 5], "lm", True) for one in FAMILIES if one not in ("llama", "qwen2")),
    *(pytest.param(*how, marks=pytest.mark.slow) for how in GRID),
])  # fmt: skip
def test_side_by_side_equals_peft_in_float64(tmp_path, kind, rank, batch, counts, objective, tied):
    moved, how = 0.0, (torch.float64, rank, batch, counts, tied, objective)
    for mine, oracle in compare_with_peft(tmp_path, kind, *how):
        assert (mine - oracle).abs().max() < 1e-7
        moved = max(moved, oracle.abs().max().item())
    assert moved > 1e-3


@pytest.mark.parametrize(("rank", "batch_size"), [(1, 3), (2, 1), (8, 1)])
def test_side_by_side_equals_peft_in_float32(tmp_path, rank, batch_size):
    counts = [5, 2, 5, 3, 1, 4, 6]
    pairs = compare_with_peft(tmp_path, "llama", torch.float32, rank, batch_size, counts, False)
    differences = torch.cat([(mine - oracle).abs().flatten() for mine, oracle in pairs])
    assert (differences <= 1e-6).float().mean() >= 0.999
    assert differences.max() <= 5e-4


@pytest.mark.parametrize("architecture", FAMILIES)
def test_merged_rows_equal_pefts_cat_and_cleared_ones_the_plain_model(tmp_path, architecture):
    ids = torch.tensor([random_examples([1])[0][0].ids])
    bank = LoraBank(tiny_model(architecture), 2, 32)
    adapters = [random_adapter(bank, 2, seed) for seed in range(5)]
    for number, adapter in enumerate(adapters):
        save_adapter(adapter, tmp_path / str(number), 32, "tiny", {})
    merged = [total(own, [], None) for own in (adapters[:3], adapters[3:])]
    bank.load(merged)  # ranks 6 and 4, side by side
    mine = bank.model(ids.repeat(2, 1)).logits

    for row, names in enumerate((["0", "1", "2"], ["3", "4"])):
        model = tiny_model(architecture)
        plain = model(ids).logits
        oracle = peft.PeftModel.from_pretrained(model, tmp_path / names[0], adapter_name=names[0])
        for name in names[1:]:
            oracle.load_adapter(tmp_path / name, adapter_name=name)
        oracle.add_weighted_adapter(names, [1.0] * len(names), "sum", combination_type="cat")
        oracle.set_adapter("sum")
        expected = oracle(ids).logits
        torch.testing.assert_close(mine[row : row + 1], expected, rtol=1e-4, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-3
    bank.clear()
    assert torch.equal(bank.model(ids).logits, plain)


def test_peft_loads_a_saved_folder_with_no_missing_and_no_unexpected_key(tmp_path):
    bank = LoraBank(tiny_model("qwen2"), 2, 32)
    adapter = random_adapter(bank, 2, 0)
    save_adapter(adapter, tmp_path / "a", 32, "tiny", {"learning_rate": 1})
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())  # the paper's
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 32, 0.0)
    assert config["target_modules"] == sorted(TARGET_MODULES)
    model = peft.PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path / "a")
    wanted = set(peft.get_peft_model_state_dict(model))
    assert wanted == set(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    result = model.load_adapter(tmp_path / "a", adapter_name="again")
    assert not [key for key in result.missing_keys if "lora" in key]
    assert not result.unexpected_keys
    name = next(iter(adapter))
    loaded = model.get_submodule(f"base_model.model.{name}.lora_A.default").weight
    assert torch.equal(loaded, adapter[name][0])
    # the published software doubled the keys of its first base, which then loaded as nothing
    open_base_adapter(bank, tmp_path / "base", "tiny", seed=0)
    assert wanted == set(load_file(tmp_path / "base" / "adapter_model.safetensors"))
    refused("use --seed 0", open_base_adapter, bank, tmp_path / "base", "tiny", seed=1)


def test_a_model_that_cannot_hold_the_adapters_is_refused():
    refused(r"--lora_rank 33 is more .* \(32\)", LoraBank, tiny_model(), 33, 32)
    model = LoraBank(tiny_model(), 2, 32).model
    refused("holds a LoraBank already", LoraBank, model, 2, 32)
    refused("no layers named", LoraBank, torch.nn.Linear(3, 3), 2, 32)


@pytest.mark.parametrize("kind, settings, layer", [
    ("Nemotron", {}, 0),  # no gate
    ("Qwen2Moe", {}, 0),  # a shared expert beside others
    ("Qwen3Moe", {"mlp_only_layers": [0]}, 1), ("DeepseekV3", {"first_k_dense_replace": 1}, 1),
    ("Mixtral", {}, 0), ("GPTNeoX", {}, 0),
])  # fmt: skip
def test_a_model_of_which_adapters_would_miss_a_part_is_refused_by_name(kind, settings, layer):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 97}
    config = getattr(transformers, f"{kind}Config")(**sizes, **settings)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    refused(rf"{kind}ForCausalLM .* \w+\.layers\.{layer} has no", LoraBank, model, 2, 32)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop(min(t)), "1 keys missing"),
    (lambda t: t.update({"extra": torch.zeros(1)}), "1 unexpected"),
    (lambda t: t.update({min(t): torch.zeros(3, 3)}), "has shape"),
    (lambda t: t[min(t)].fill_(float("nan")), "NaN"),
    (lambda t: [t.update({f"base_model.{k}": t.pop(k)}) for k in list(t)], "keys missing"),
])  # fmt: skip
def test_a_damaged_adapter_is_refused(tmp_path, change, message):
    bank = LoraBank(tiny_model("llama"), 2, 32)
    save_adapter(bank.new_base_adapter(0), tmp_path / "a", 32, "tiny", {})
    load_adapter(tmp_path / "a", bank.shapes(2))
    tensors = load_file(path := tmp_path / "a/adapter_model.safetensors")
    change(tensors)
    save_file(tensors, path)
    refused("changed after it was saved", load_adapter, tmp_path / "a", bank.shapes(2))
    (tmp_path / "a/training_config.json").unlink()  # it holds the hash of the weights
    refused(message, load_adapter, tmp_path / "a", bank.shapes(2))
