"""Many LoRA adapters side by side on one frozen model: train, merge, load, save.

PRAG makes one tiny adapter per passage (arXiv:2501.15915, section 3.2.2) and answers each question
with the sum of its passages' adapters (section 3.3). `LoraBank` does both for many at once: the
rows of a batch fall into N equal groups, and group i goes through adapter i,

    y = base(x) + alpha / rank * (x A_i^T) B_i^T.

Training N passages sums N independent losses, so every adapter gets the gradient that it would get
alone. `peft` is the format on disk and the oracle in the tests.
"""

import hashlib
import json
import math
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from utils.paths import InputError, read_json, read_object, relative, writing_folder
from utils.provenance import PROVENANCE, provenance

TARGET_MODULES = ("gate_proj", "up_proj", "down_proj")  # the feed-forward network of every layer
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINING_FILE = "training_config.json"
WEIGHTS_HASH = "weights_hash"  # in the training file, so that a damaged adapter never passes

# One adapter, or several stacked: module name -> (A [.., rank, in], B [.., out, rank]).
Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]


class BankLinear(nn.Module):
    """A frozen linear layer with N adapters; without adapters it is the layer alone."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.A: torch.Tensor | None = None  # [N, rank, in]
        self.B: torch.Tensor | None = None  # [N, out, rank]
        self.scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x [N * rows, length, in]` -> `[N * rows, length, out]`; row group i uses adapter i."""
        y = self.base(x)
        if self.A is None:
            return y
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        inner = torch.bmm(x.reshape(len(A), -1, x.shape[-1]), A.mT)  # [N, rows * length, rank]
        # one pass over y: on a GPU these products wait for memory, not for arithmetic
        summed = torch.baddbmm(y.view(len(A), -1, y.shape[-1]), inner, B.mT, alpha=self.scale)
        return summed.view_as(y)


class LoraBank:
    """The places for adapters in a model: every feed-forward layer becomes a `BankLinear`.

    The model is frozen and changed in place, once. Raises `InputError` where the model has no
    layers named like `TARGET_MODULES`.
    """

    def __init__(self, model: nn.Module, rank: int, alpha: float):
        if any(isinstance(module, BankLinear) for module in model.modules()):
            raise InputError("the model holds a LoraBank already; use that one, or load it afresh")
        model.requires_grad_(False)
        self.model, self.rank, self.alpha = model, rank, alpha
        self.layers: dict[str, BankLinear] = {}
        for name, module in list(model.named_modules()):
            parent, _, child = name.rpartition(".")
            if child in TARGET_MODULES and isinstance(module, nn.Linear):
                layer = BankLinear(module)
                layer.scale = alpha / rank
                setattr(model.get_submodule(parent), child, layer)
                self.layers[name] = layer
        if not self.layers:
            raise InputError(
                f"{type(model).__name__} has no layers named {', '.join(TARGET_MODULES)}; "
                "this toolkit works with Llama-like models"
            )

    def devices(self) -> dict[str, torch.device]:
        """Where each layer is: a model may be spread over several GPUs."""
        return {name: layer.base.weight.device for name, layer in self.layers.items()}

    def shapes(self, rank: int) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
        """The shapes of A and B of each layer for an adapter of `rank`."""
        return {
            name: ((rank, layer.base.in_features), (layer.base.out_features, rank))
            for name, layer in self.layers.items()
        }

    def new_base_adapter(self, seed: int) -> Adapter:
        """The adapter that all passages start from: A Kaiming uniform (a = sqrt 5), B zero."""
        generator = torch.Generator().manual_seed(seed)
        adapter = {}
        for name, (shape_A, shape_B) in self.shapes(self.rank).items():
            A = nn.init.kaiming_uniform_(torch.empty(shape_A), a=math.sqrt(5), generator=generator)
            adapter[name] = (A, torch.zeros(shape_B))
        return adapter

    def no_adapter(self) -> Adapter:
        """An adapter that changes nothing, for a question without passages."""
        return {
            name: (torch.zeros(shape_A), torch.zeros(shape_B))
            for name, (shape_A, shape_B) in self.shapes(1).items()
        }

    def set(self, stacked: Adapter) -> None:
        """Use the adapters `A [N, rank, in]`, `B [N, out, rank]`, as they are (no copy)."""
        for name, layer in self.layers.items():
            layer.A, layer.B = stacked[name]

    def ready(self, adapters: list[Adapter]) -> Adapter:
        """`adapters` stacked for `set`, one per row group, where the model is and in its dtype.

        Smaller ranks are filled up with zeros.
        """
        rank = max(len(A) for adapter in adapters for A, _ in adapter.values())
        stacked = {}
        for name, layer in self.layers.items():
            A = torch.stack([_padded(a[name][0], 0, rank) for a in adapters])  # [N, rank, in]
            B = torch.stack([_padded(a[name][1], 1, rank) for a in adapters])  # [N, out, rank]
            # cast once here and not in every forward pass
            stacked[name] = A.to(layer.base.weight), B.to(layer.base.weight)
        return stacked

    def load(self, adapters: list[Adapter]) -> None:
        """Use `adapters`, one per row group."""
        self.set(self.ready(adapters))

    def clear(self) -> None:
        """Use no adapter: the model answers as if there were no bank."""
        for layer in self.layers.values():
            layer.A = layer.B = None


def _padded(tensor: torch.Tensor, dimension: int, size: int) -> torch.Tensor:
    missing = size - tensor.shape[dimension]
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dimension] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)


def stack(adapters: list[Adapter], devices: dict[str, torch.device], dtype: torch.dtype) -> Adapter:
    """N adapters of one rank as one: `A [N, rank, in]`, `B [N, out, rank]`, freshly allocated.

    Each layer's part stands on its device in `devices`.
    """
    return {
        name: tuple(
            torch.stack([a[name][part] for a in adapters]).to(devices[name], dtype)
            for part in (0, 1)
        )
        for name in adapters[0]
    }


def unstack(stacked: Adapter) -> list[Adapter]:
    """The N adapters of a stacked one, on the CPU."""
    on_cpu = {name: (A.detach().cpu(), B.detach().cpu()) for name, (A, B) in stacked.items()}
    count = len(next(iter(on_cpu.values()))[0])
    return [{n: (A[i].clone(), B[i].clone()) for n, (A, B) in on_cpu.items()} for i in range(count)]


def merge(adapters: list[Adapter], scale: float = 1.0, base: Adapter | None = None) -> Adapter:
    """One adapter whose delta is `scale` times the sum of the k given (section 3.3 of the paper).

    A `[k * rank, in]` and B `[out, k * rank]` are concatenated along the rank, all weights 1: what
    `peft` computes with `add_weighted_adapter(combination_type="cat")`.

    All k adapters were trained from one base adapter, whose own delta their sum holds k times: a
    warmed-up one counts for more with every passage. With `base` it counts once: the sum is that of
    the base and of what each passage changed in it, and the rank is `(k + 1) * rank`.
    """
    weights = [scale] * len(adapters)
    if base is not None:
        adapters, weights = [*adapters, base], [*weights, scale * (1 - len(adapters))]
    return {
        name: (
            torch.cat([adapter[name][0] for adapter in adapters], dim=0),
            torch.cat([w * a[name][1] for w, a in zip(weights, adapters, strict=True)], dim=1),
        )
        for name in adapters[0]
    }


# ------------------------------------------------------------------------------------------------
# Folders in peft's format


def _key(name: str, part: str) -> str:
    return f"base_model.model.{name}.lora_{part}.weight"


def fingerprint(adapter: Adapter) -> str:
    """A short hash of an adapter's numbers: tells whether passages started from the same base."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        for tensor in adapter[name]:
            digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def stored_fingerprint(folder: Path) -> str | None:
    """The fingerprint of the adapter in `folder`, or None where none stands; needs no model."""
    if not (folder / WEIGHTS_FILE).is_file():
        return None
    tensors = _read_weights(folder)
    names = {key.rsplit(".lora_", 1)[0].removeprefix("base_model.model.") for key in tensors}
    return fingerprint(
        {
            name: tuple(tensors[key] for part in "AB" if (key := _key(name, part)) in tensors)
            for name in names
        }
    )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in `folder`, as they were saved.

    Raises `InputError` where they cannot be read, or are not those that `save_adapter` hashed.
    """
    path = folder / WEIGHTS_FILE
    remedy = f"delete {relative(folder)} and make it again"
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"adapter {relative(path)} cannot be read ({error}); {remedy}") from None
    record = folder / TRAINING_FILE
    made = read_object(record, "the record of an adapter,") if record.is_file() else {}
    if made.get(WEIGHTS_HASH, _hash(data)) != _hash(data):
        raise InputError(
            f"adapter {relative(path)} was changed after it was saved: its hash differs; {remedy}"
        )
    return tensors


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def save_adapter(
    adapter: Adapter,
    folder: Path,
    rank: int,
    alpha: float,
    base_model: str,
    training: dict,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the adapter as a folder that `PeftModel.from_pretrained` loads, whole or not at all.

    `training` says what made it and goes into `training_config.json` beside the weights.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base_model,
    ).to_dict()
    # peft keeps this one as a set, whose order changes from run to run
    config["target_modules"] = sorted(config["target_modules"])
    tensors = {}
    for name, (A, B) in adapter.items():
        tensors[_key(name, "A")] = A.to(dtype).contiguous()
        tensors[_key(name, "B")] = B.to(dtype).contiguous()
    with writing_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        weights_hash = _hash((temporary / WEIGHTS_FILE).read_bytes())
        made = {**training, WEIGHTS_HASH: weights_hash, PROVENANCE: provenance()}
        for name, value in (("adapter_config.json", config), (TRAINING_FILE, made)):
            text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")


def load_adapter(
    folder: Path, shapes: dict[str, tuple[tuple[int, int], tuple[int, int]]]
) -> Adapter:
    """The adapter in `folder` as float32, checked against the bank's `shapes`.

    Raises `InputError` where a key is missing or unexpected, a shape differs or a number is not
    finite: an adapter must never load as nothing.
    """
    path = folder / WEIGHTS_FILE
    remedy = f"delete {relative(folder)} and make it again"
    tensors = _read_weights(folder)
    expected = {
        _key(name, part): shape
        for name, both in shapes.items()
        for part, shape in zip("AB", both, strict=True)
    }
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise InputError(
            f"adapter {relative(path)} does not fit this model: {len(missing)} keys missing, "
            f"{len(unexpected)} unexpected, such as {min(missing | unexpected)}; {remedy}"
        )
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise InputError(
                f"adapter {relative(path)}: {key} has shape {tuple(tensors[key].shape)}, "
                f"the model needs {shape}; {remedy}"
            )
        if not torch.isfinite(tensors[key]).all():
            raise InputError(f"adapter {relative(path)}: {key} holds NaN or infinity; {remedy}")
    return {
        name: (tensors[_key(name, "A")].float(), tensors[_key(name, "B")].float())
        for name in shapes
    }


def read_training(folder: Path) -> dict | None:
    """What made the adapter in `folder`, or None where no whole adapter stands there.

    Its hash and who made it when are left out: they are no settings. Raises `InputError` where
    the record is damaged.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        return None
    training = read_object(folder / TRAINING_FILE, "the record of an adapter,")
    return {name: training[name] for name in training if name not in (WEIGHTS_HASH, PROVENANCE)}


def open_base_adapter(bank: LoraBank, folder: Path, base_model: str, seed: int) -> Adapter:
    """The base adapter in `folder`, made and saved there where it does not exist yet.

    Raises `InputError` where the one that stands there was made from another seed.
    """
    made_with = {"seed": seed, "initialisation": "A kaiming_uniform(a=sqrt(5)), B zeros"}
    present = read_training(folder)
    if present is None:
        adapter = bank.new_base_adapter(seed)
        save_adapter(adapter, folder, bank.rank, bank.alpha, base_model, made_with)
    elif present != made_with:
        raise InputError(
            f"{relative(folder)} was made with {json.dumps(present)}, but this run asks for "
            f"{json.dumps(made_with)}; use --seed {present.get('seed')}, or move the folder "
            f"{relative(folder.parent)} away to start anew"
        )
    return load_adapter(folder, bank.shapes(bank.rank))


def check_init_adapter(folder: Path, rank: int, alpha: float) -> None:
    """Refuse what stands in `folder` as a start for passages; this needs no model.

    Raises `InputError` unless it is a PEFT folder of LoRA weights with this rank and alpha, on the
    layers that passages are trained on.
    """
    remedy = "train one with: python src/warmup_lora.py, or give another --init_adapter"
    path = folder / "adapter_config.json"
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"--init_adapter: there is no adapter in {relative(folder)}; {remedy}")
    config = read_json(path, "the adapter's configuration")
    if not isinstance(config, dict):
        raise InputError(f"{relative(path)} holds no object; {remedy}")
    wanted = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    wanted["target_modules"] = sorted(TARGET_MODULES)
    for name, value in wanted.items():
        found = config.get(name)
        found = sorted(found) if isinstance(found, list) else found
        if found != value:
            raise InputError(
                f"--init_adapter: {relative(path)} has {name} = {json.dumps(found)}, but this run "
                f"needs {json.dumps(value)}; {remedy}"
            )
