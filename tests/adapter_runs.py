"""Small adapters on the disk, and work that is killed at a chosen step."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from stage_runs import MODEL, run, stop_after
from transformers import AutoModelForCausalLM

from utils.lora.bank import LoraBank
from utils.store.folders import save_adapter

STEPS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "sync")


def tiny_bank() -> LoraBank:
    return LoraBank(tiny_model("llama"), 2, 32)


def demo_bank() -> LoraBank:
    """The bundled model, fresh, with room for the adapters of the stages."""
    return LoraBank(AutoModelForCausalLM.from_pretrained(MODEL), 2, 32)


def random_adapter(bank: LoraBank, rank: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tuple(0.1 * torch.randn(shape, generator=generator) for shape in both)
        for name, both in bank.shapes(rank).items()
    }


def save_tiny(bank: LoraBank, folder: Path, seed: int, **training) -> None:
    """A random adapter whose record says that it was made from `seed`."""
    training = {"data": str(seed), "base": "b", **training}
    save_adapter(random_adapter(bank, 2, seed), folder, 32, "tiny", training)


def generated_by(model, tokenizer, prompt: list[int]) -> str:
    """The twelve most likely tokens after `prompt`, by the library's own generation."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)


def files_below(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def stopped(module, name: str, calls: int, stage, *flags: str) -> None:
    """A run of `stage` in which call number `calls` of a function is a Ctrl-C."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, stop_after(calls, getattr(module, name)))
        run(stage, *flags)


@contextmanager
def counting(reached: Callable[[int], None]) -> Iterator[None]:
    """Call `reached` with the number of each change of the disk before it is made."""
    count = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            reached(count)
            return function(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def changes_of(work: Callable[[], object]) -> int:
    """Do `work`; how many changes of the disk it makes."""
    numbers = [0]
    with counting(numbers.append):
        work()
    return numbers[-1]


def in_fork(work: Callable[[], object]) -> int:
    """Begin `work` in another process, which ends with 1 after an error; the process's id."""
    process = os.fork()
    if process == 0:
        # torch cannot begin threads in the child of a process that has used its own
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return process


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that dies before change `step` of the disk; whether it got there."""

    def until_the_step():
        with counting(lambda number: os._exit(9) if number == step else None):
            work()

    code = os.waitstatus_to_exitcode(os.waitpid(in_fork(until_the_step), 0)[1])
    assert code in (0, 9)
    return code == 9


def in_processes(count: int, work: Callable[[int], object]) -> None:
    """Do `work(number)` in `count` processes at once; an error in any fails the test."""
    begin, begun = os.pipe()

    def together(number):
        os.close(begun)
        os.read(begin, 1)  # all wait for the same moment
        work(number)

    processes = [in_fork(partial(together, number)) for number in range(count)]
    os.close(begun)
    os.close(begin)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * count
