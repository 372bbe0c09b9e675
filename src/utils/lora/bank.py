"""Many LoRA adapters side by side on one frozen model: train, merge.

PRAG makes one tiny adapter per passage (arXiv:2501.15915, section 3.2.2) and answers each question
with the sum of its passages' adapters (section 3.3). `LoraBank` does both for many at once: the
rows of a batch fall into N equal groups, and group i goes through adapter i,

    y = base(x) + alpha / rank * (x A_i^T) B_i^T.

Training N passages sums N independent losses, so every adapter gets the gradient that it would get
alone. `peft` is the oracle in the tests.
"""

import math

import torch
from torch import nn

from utils.running import InputError

TARGET_MODULES = ("gate_proj", "up_proj", "down_proj")  # the feed-forward network of every layer

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
        widths = [min(x.base.in_features, x.base.out_features) for x in self.layers.values()]
        if widths and rank > min(widths):
            raise InputError(
                f"--lora_rank {rank} is more than the smallest layer has ({min(widths)}): such an "
                "adapter would be larger than the layer; use a smaller one"
            )
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


def pad(adapter: Adapter, rank: int) -> Adapter:
    """The adapter filled up with zeros to `rank`: its delta stays the same."""
    return {name: (_padded(A, 0, rank), _padded(B, 1, rank)) for name, (A, B) in adapter.items()}
