"""Work split over the processes of a launcher (accelerate, torchrun), or the jobs of an array.

Item i of the whole work list, never of what is left of it, belongs to process i modulo N. So any
number of processes, changed from start to start, ends with the same results.
"""

import atexit
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as distributed
from tqdm import tqdm

from utils.arguments import LAUNCH_REMEDY, launcher_says
from utils.running import InputError

Item = TypeVar("Item")
PATIENCE = timedelta(days=30)  # for the slowest process's share of the work


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
        values = [value]
        if self.launched:
            distributed.broadcast_object_list(values, group=self.group)
        return values[0]

    def bar(self, title: str, unit: str, total: int, left: int) -> tqdm:
        """A progress bar of this process's share, `left` of `total` to do; one for a launch."""
        number = f" {self.index + 1}/{self.count}" if self.count > 1 else ""
        silent = not (self.is_main or self.is_shard)
        how = {"unit": unit, "initial": total - left, "disable": silent}
        return tqdm(None, title + number, total, miniters=0, **how)  # a step counts as news

    def say_part_is_done(self) -> None:
        """What a job of an array ends with."""
        remedy = "when all parts are, the same command without --shard puts them together"
        self.say(f"part {self.index} of {self.count} is done; {remedy}")

    def say(self, text: str) -> None:
        """Print `text`, if any, once: jobs of an array each speak for themselves."""
        if text and (self.is_main or self.is_shard):
            print(text, flush=True)


def start_processes(shard: tuple[int, int] | None, device_map: str | None) -> Processes:
    """Join the processes that a launcher started (`RANK`, `WORLD_SIZE`), or be job `shard` of N.

    A process takes the GPU of its number on its machine. Raises `InputError` if several are to
    share a model that `device_map` spreads over all GPUs, or if no launcher set the variables.
    """
    count = launcher_says("WORLD_SIZE", "1")
    if count > 1 and device_map:
        raise InputError("--device_map auto gives one process all GPUs; start it with python")
    if shard is not None:
        return Processes(*shard)
    if count == 1:
        return Processes()
    if (rank := launcher_says("RANK")) >= count:
        raise InputError(f"RANK is {rank}, but WORLD_SIZE {count}; {LAUNCH_REMEDY}")
    if torch.cuda.is_available():
        torch.cuda.set_device(launcher_says("LOCAL_RANK", "0") % torch.cuda.device_count())
    try:
        distributed.init_process_group("gloo")  # a few words over the network, whatever the device
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        problem = f"the processes do not find each other ({reason})"
        raise InputError(f"{problem}; {LAUNCH_REMEDY}") from None
    atexit.register(distributed.destroy_process_group)
    group = distributed.new_group(timeout=PATIENCE)
    return Processes(distributed.get_rank(), distributed.get_world_size(), True, group)


def refuse_launcher(script: str) -> None:
    """Raise `InputError` if a launcher started `script`, whose work cannot be split."""
    if launcher_says("WORLD_SIZE", "1") != 1:
        words = "start it with python, without a launcher and the variable WORLD_SIZE"
        raise InputError(f"{script} runs in one process; {words}")
