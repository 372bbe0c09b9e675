"""Small adapters on the disk, and work that is killed at a chosen step."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import tiny_model

from utils.lora.bank import LoraBank
from utils.store.folders import read_adapter, save_adapter
from utils.store.links import Shared

STEPS = ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "fsync", "sync")


def tiny_bank() -> LoraBank:
    return LoraBank(tiny_model("llama"), 2, 32)


def save_tiny(bank: LoraBank, folder: Path, seed: int, **training) -> None:
    """A random adapter whose record says that it was made from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    adapter = {
        name: tuple(0.1 * torch.randn(shape, generator=generator) for shape in both)
        for name, both in bank.shapes(2).items()
    }
    save_adapter(adapter, folder, 2, 32, "tiny", {"data": str(seed), "base": "b", **training})


def tiny_data_type(adapters: Path) -> LoraBank:
    """Six passages of three questions, four of them different: two folders are hard links."""
    bank = tiny_bank()
    for number, (did, pid) in enumerate([(0, 0), (0, 1), (1, 0), (10, 0)]):
        save_tiny(bank, adapters / f"data_{did}/passage_{pid}", number)
    shared = Shared()
    shared.give(adapters / "data_0/passage_0", adapters / "data_1/passage_1")
    shared.give(adapters / "data_1/passage_0", adapters / "data_10/passage_1")
    assert shared.linked == 2
    return bank


def contents(folders: list[Path]) -> dict[str, dict[str, bytes]]:
    """What readers find at each of the folders, wherever it stands."""
    return {f"{f.parent.name}/{f.name}": read_adapter(f) for f in folders}


def files_below(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def linked_groups(root: Path) -> set[frozenset[str]]:
    """The weights files that are one on the disk, as sets of their names."""
    groups: dict[int, set[str]] = {}
    for path in root.rglob("*.safetensors"):
        groups.setdefault(path.stat().st_ino, set()).add(str(path.relative_to(root)))
    return {frozenset(group) for group in groups.values()}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that dies, as from SIGKILL, before change number `step` of the disk.

    False where it was through before; an error in it fails the test.
    """
    process = os.fork()
    if process == 0:
        left = step

        def counted(function):
            def call(*arguments, **keywords):
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return function(*arguments, **keywords)

            return call

        try:
            for name in STEPS:
                setattr(os, name, counted(getattr(os, name)))
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9)
    return code == 9


def in_processes(count: int, work: Callable[[int], object]) -> None:
    """Do `work(number)` in `count` processes at once; an error in any fails the test."""
    begin, begun = os.pipe()
    processes = []
    for number in range(count):
        process = os.fork()
        if process == 0:
            try:
                os.close(begun)
                os.read(begin, 1)  # all wait for the same moment
                work(number)
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
            os._exit(0)
        processes.append(process)
    os.close(begun)
    os.close(begin)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * count
