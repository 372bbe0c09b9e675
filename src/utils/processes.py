"""Work split over processes: those of a launcher, or the jobs of an array.

    accelerate launch --multi_gpu --num_processes 8 src/encode.py ...    # or torchrun
    python src/encode.py ... --shard 3/8                                 # one job of eight

The items of a work list are dealt out in turn: number i belongs to process i modulo N. That is a
rule about the whole list, never about what is left of it, so any number of processes, changed from
start to start, ends with the same results. Processes share nothing but the disk.
"""

import argparse
import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as distributed
from tqdm import tqdm

from utils.running import InputError

Item = TypeVar("Item")
MEETING = timedelta(minutes=10)  # for all processes of a launch to start
PATIENCE = timedelta(days=30)  # for the slowest one's share of the work


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work."""

    index: int = 0
    count: int = 1
    launched: bool = False  # by a launcher; otherwise this is the only one, or a job of an array
    group: object = None  # of torch.distributed, in a launch

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all and puts the results together."""
        return self.index == 0

    @property
    def is_shard(self) -> bool:
        """Whether this is a job of an array, which leaves putting together to a later run."""
        return self.count > 1 and not self.launched

    def share(self, items: Sequence[Item]) -> list[Item]:
        """The items of the whole list that belong to this process."""
        return list(items[self.index :: self.count])

    def wait(self) -> None:
        """Wait until every process of the launch is here; jobs of an array do not wait."""
        if self.launched:
            distributed.barrier(group=self.group)

    def agree(self, value: Item) -> Item:
        """The main process's `value` (anything that JSON holds), in every process of a launch."""
        if not self.launched:
            return value
        values = [value]
        distributed.broadcast_object_list(values, group=self.group)
        return values[0]

    def bar(self, title: str, unit: str, total: int, left: int) -> tqdm:
        """A progress bar of this process's share, `left` of `total` to do; one for a launch."""
        number = f" {self.index + 1}/{self.count}" if self.count > 1 else ""
        shown = self.is_main or self.is_shard
        return tqdm(
            total=total, initial=total - left, unit=unit, desc=title + number, disable=not shown
        )

    def say_part_is_done(self) -> None:
        """What a job of an array ends with."""
        self.say(
            f"part {self.index} of {self.count} is done; when all parts are, the same command "
            "without --shard puts them together"
        )

    def say(self, text: str) -> None:
        """Print `text` once: jobs of an array each speak for themselves."""
        if self.is_main or self.is_shard:
            print(text, flush=True)


def start_processes(
    shard: tuple[int, int] | None = None, device_map: str | None = None
) -> Processes:
    """Join the processes that a launcher started (`RANK`, `WORLD_SIZE`), or be job `shard` of N.

    A process takes the GPU of its number on its machine. Raises `InputError` where several are to
    share a model that `device_map` spreads over all GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1 and device_map:
        raise InputError(
            "--device_map auto gives one process all GPUs; start it with python, without a "
            "launcher, or leave the flag out"
        )
    if shard is not None:
        return Processes(*shard)
    if count == 1:
        return Processes()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    # a few words over the network, whatever the device
    distributed.init_process_group("gloo", timeout=MEETING)
    atexit.register(distributed.destroy_process_group)
    group = distributed.new_group(timeout=PATIENCE)
    return Processes(distributed.get_rank(), distributed.get_world_size(), True, group)


def refuse_launcher(script: str) -> None:
    """Raise `InputError` where a launcher started `script`, whose work cannot be split."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(f"{script} runs in one process; start it with python, without a launcher")


def shard_of(text: str) -> tuple[int, int]:
    """`I/N` of `--shard`, for argparse: job I of N, counted from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no I/N with I from 0 to N - 1, such as 0/4 and 3/4"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise argparse.ArgumentTypeError(
            "a launcher splits the work already; leave --shard out, or start without the launcher"
        )
    return int(index), int(count)


def add_shard_flag(group: argparse._ArgumentGroup) -> None:
    """`--shard I/N`."""
    group.add_argument(
        "--shard",
        type=shard_of,
        help="I/N: part I (from 0) of N; a run without it puts all parts together (not set: all)",
    )
