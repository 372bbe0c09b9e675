"""Ways of doing the same thing, timed in turn on one device."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from transformers import PreTrainedModel


@dataclass
class Timing:
    """One way's measurements, a figure per counted round; `tokens`, `rows`, `calls` are a round's.

    `cpu_seconds` tells on a shared machine what is the work's own: all threads' processor time.
    `tokens` is what the model was given, padding included, in so many `rows` of so many `calls`.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    calls: int = 0
    peak_bytes: int | None = None
    failure: str | None = None


@contextmanager
def given_to(model: PreTrainedModel) -> Iterator[list[torch.Size]]:
    """A list to which each forward pass inside the block adds the shape of its token ids."""
    given: list[torch.Size] = []
    embeddings = model.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _, ids: given.append(ids[0].shape))
    try:
        yield given
    finally:
        hook.remove()


class Stage:
    """The device with one model on it at a time, and its clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.model: PreTrainedModel | None = None
        self.home: list[tuple[torch.Tensor, torch.Tensor]] = []

    def hold(self, model: PreTrainedModel) -> None:
        """Put `model` on the device, and the one before it back: frozen, it stayed as it was."""
        if model is self.model:
            return
        for tensor, data in self.home:
            tensor.data = data
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.home = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
        for tensor, data in self.home:
            tensor.data = data.to(self.device)
        self.model = model

    def peak_of(self, model: PreTrainedModel, work: Callable[[], None]) -> int:
        """The bytes that `work` holds at most, `model` included.

        On a CPU it is the process's growth, which tells the truth once: before anything else ran,
        whose memory the process would use again.
        """
        self.hold(model)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            work()
            return torch.cuda.max_memory_allocated()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        Path("/proc/self/clear_refs").write_text("5")  # the highest level so far is forgotten
        before = _status("VmRSS")
        work()
        return weights + _status("VmHWM") - before

    def measure(
        self, ways: dict[str, tuple[PreTrainedModel, Callable[[], None]]], repetitions: int
    ) -> dict[str, Timing]:
        """Run the ways in turn, `repetitions` rounds and an uncounted one before them."""
        timings = {name: Timing() for name in ways}
        for round_number in range(repetitions + 1):
            for name, (model, work) in ways.items():
                timing = timings[name]
                if timing.failure:
                    continue
                self.hold(model)
                try:
                    seconds, cpu_seconds = self._time(model, work, timing)
                except torch.cuda.OutOfMemoryError:
                    timing.failure = "out of memory"
                    continue
                if round_number:
                    timing.seconds.append(seconds)
                    timing.cpu_seconds.append(cpu_seconds)
            done = {name: statistics.median(t.seconds) for name, t in timings.items() if t.seconds}
            shown = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in done.items())
            print(f"round {round_number} of {repetitions}: {shown or 'not counted'}", flush=True)
        return timings

    def _time(
        self, model: PreTrainedModel, work: Callable[[], None], timing: Timing
    ) -> tuple[float, float]:
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        with given_to(model) as given:
            work()
            if gpu:
                torch.cuda.synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        timing.tokens, timing.calls = sum(map(prod, given)), len(given)
        timing.rows = sum(shape[0] for shape in given)
        timing.peak_bytes = torch.cuda.max_memory_allocated() if gpu else None
        return seconds, cpu_seconds


def _status(name: str) -> int:
    """A size in bytes that Linux tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {name}")
