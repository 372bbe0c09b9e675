"""Many LoRA adapters side by side on one frozen model (PRAG, arXiv:2501.15915, section 3).

The rows of a batch fall into N equal groups; group i goes through adapter i:
`y = base(x) + alpha / rank * (x A_i^T) B_i^T`. `peft` is the oracle in the tests.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch import nn

from utils.running import InputError

# the linear layers of a feed-forward network, of which every layer of the model has one
TARGET_MODULES = ("gate_proj", "up_proj", "down_proj")
FUSED_MODULES = ("gate_up_proj", "down_proj")  # the same with gate and up in one

# One adapter, or several stacked: module name -> (A [.., rank, in], B [.., out, rank]).
Adapter = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class WeightedSum(Mapping):
    """The adapter whose delta is the weighted sum of the deltas of `adapters`: their A and B joined
    along the rank (`combination_type="cat"` of `peft`). A layer's are made when asked for, so that
    those of a batch of questions are copied once (`LoraBank.ready`). B is `[rank, out]` in memory:
    its product with few tokens is then one of whole lines."""

    def __init__(self, adapters: Sequence[Adapter], weights: Sequence[float]):
        self.parts: list[tuple[Adapter, float]] = []
        for adapter, weight in zip(adapters, weights, strict=True):
            parts = adapter.parts if isinstance(adapter, WeightedSum) else [(adapter, 1.0)]
            self.parts += [(part, weight * own) for part, own in parts]

    def __getitem__(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        A = torch.cat([adapter[name][0] for adapter, _ in self.parts])
        B = torch.cat([adapter[name][1].mT for adapter, _ in self.parts])
        if any(weight != 1 for _, weight in self.parts):
            weights = [[weight] for part, weight in self.parts for _ in range(len(part[name][0]))]
            B *= B.new_tensor(weights)
        return A, B.mT

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0][0])

    def __len__(self) -> int:
        return len(self.parts[0][0])


class BankLinear(nn.Module):
    """A frozen linear layer with N adapters; without adapters it is the layer alone."""

    def __init__(self, base: nn.Linear, scale: float):
        super().__init__()
        self.base, self.scale = base, scale
        self.A: torch.Tensor | None = None  # [N, rank, in]
        self.B: torch.Tensor | None = None  # [N, out, rank]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x [N * rows, length, in]` -> `[N * rows, length, out]`; row group i uses adapter i."""
        y = self.base(x)
        if self.A is None:
            return y
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        grouped = x.reshape(len(A), -1, x.shape[-1])
        # [N, rows * length, rank]; a lone token is a vector, which is faster on the right
        inner = torch.bmm(A, grouped.mT).mT if grouped.shape[1] == 1 else torch.bmm(grouped, A.mT)
        # one pass over y, in its place: these products wait for memory, not for arithmetic. MKL
        # takes twice as long if the scale is its `alpha`
        y.view(len(A), -1, y.shape[-1]).baddbmm_(inner * self.scale, B.mT)
        return y


def feed_forward(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of every layer's feed-forward network by name, in order. Raises
    `InputError` unless each layer has exactly one network, whole, as Llama-like models have."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, nn.Linear] = {}
    decoder = getattr(model, "get_decoder", lambda: model)()
    for block in getattr(decoder, "layers", ()):
        networks = [parts for one in block.children() if (parts := _whole_network(one))]
        inner = " ".join(name for name, _ in block.named_modules())
        if len(networks) != 1 or re.search("expert|router|moe", inner):
            raise _refusal(model, names[block])
        found |= {names[module]: module for module in networks[0]}
    if not found:
        raise _refusal(model, "it")
    return found


def _whole_network(module: nn.Module) -> list[nn.Linear] | None:
    """The linear layers of a feed-forward network, None if `module` is or holds anything else."""
    parts = dict(module.named_children())
    for targets in (TARGET_MODULES, FUSED_MODULES):
        linear = [parts[name] for name in parts if name in targets]
        weights = sum(len(list(part.parameters())) for part in linear)
        if len(linear) == len(targets) and all(isinstance(part, nn.Linear) for part in linear):
            return linear if weights == len(list(module.parameters())) else None
    return None


def _refusal(model: nn.Module, place: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot have adapters: {place} has no layers named "
        f"{', '.join(TARGET_MODULES)} or {', '.join(FUSED_MODULES)} that are a whole feed-forward "
        "network without experts; use a dense, Llama-like model"
    )


class LoraBank:
    """The places for adapters in a model: every feed-forward layer becomes a `BankLinear`. The
    model is frozen and changed in place. Raises `InputError` if no adapter fits it."""

    def __init__(self, model: nn.Module, rank: int, alpha: float):
        if any(isinstance(module, BankLinear) for module in model.modules()):
            raise InputError("the model holds a LoraBank already; use that one, or load it afresh")
        model.requires_grad_(False)
        self.model, self.rank, self.alpha = model, rank, alpha
        self.taught: dict = {}  # what the model without adapters says (see `objectives.taught`)
        self.layers = {n: BankLinear(one, alpha / rank) for n, one in feed_forward(model).items()}
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        smallest = min(min(layer.base.weight.shape) for layer in self.layers.values())
        if rank > smallest:
            raise InputError(
                f"--lora_rank {rank} is more than the smallest layer has ({smallest}); lower it"
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

    def new_base_adapter(self, seed: int, rank: int | None = None) -> Adapter:
        """The adapter that all passages start from: A Kaiming uniform (a = sqrt 5), B zero; of
        another `rank` several below each other."""
        generator = torch.Generator().manual_seed(seed)
        draw = partial(nn.init.kaiming_uniform_, a=math.sqrt(5), generator=generator)
        return {
            name: (draw(torch.empty(shape_A)), torch.zeros(shape_B))
            for name, (shape_A, shape_B) in self.shapes(rank or self.rank).items()
        }

    def no_adapter(self, rank: int = 1) -> Adapter:
        """An adapter that changes nothing, for a question without passages."""
        return {name: tuple(map(torch.zeros, both)) for name, both in self.shapes(rank).items()}

    def set(self, stacked: Adapter) -> None:
        """Use the adapters `A [N, rank, in]`, `B [N, out, rank]`, as they are (no copy)."""
        for name, layer in self.layers.items():
            layer.A, layer.B = stacked[name]

    def ready(self, adapters: list[Adapter]) -> Adapter:
        """`adapters` for `set`, one per row group, padded to one rank, in the model's dtype."""
        ranks = [len(next(iter(adapter.values()))[0]) for adapter in adapters]
        rank, every = max(ranks), []
        for adapter, own in zip(adapters, ranks, strict=True):
            every += [adapter] if own == rank else [adapter, self.no_adapter(rank - own)]
        joined, stacked = WeightedSum(every, [1.0] * len(every)), {}
        for name, device in self.devices().items():
            # cast once here and not in every forward pass
            A, B = (one.to(device, self.model.dtype) for one in joined[name])
            stacked[name] = A.unflatten(0, (-1, rank)), B.mT.unflatten(0, (-1, rank)).mT
        return stacked

    def load(self, adapters: list[Adapter]) -> None:
        """Use `adapters`, one per row group."""
        self.set(self.ready(adapters))

    def keep(self, places: torch.Tensor) -> None:
        """Go on with the adapters of these row groups alone (`places` on the CPU)."""
        self.set({name: (one.A[places], one.B[places]) for name, one in self.layers.items()})

    def clear(self) -> None:
        """Use no adapter: the model answers as if there were no bank."""
        for layer in self.layers.values():
            layer.A = layer.B = None

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """No adapter is used inside the block; then the ones from before are again."""
        used = {name: (layer.A, layer.B) for name, layer in self.layers.items()}
        self.clear()
        try:
            yield
        finally:
            self.set(used)

    @property
    def device(self) -> torch.device:
        """Where the model takes its token ids."""
        return self.model.device

    @cached_property
    def has_plain_head(self) -> bool:
        """Whether logits are hidden states times the head: some models scale or cap them."""
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            return False
        ids = torch.arange(3, device=self.device)[None]
        with torch.no_grad(), self.cleared():
            hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            return torch.equal(head(hidden), self.model(input_ids=ids, use_cache=False).logits)


def stack(adapters: list[Adapter], devices: dict[str, torch.device], dtype: torch.dtype) -> Adapter:
    """N adapters of one rank as one, in new memory, each layer's part on its device."""
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
