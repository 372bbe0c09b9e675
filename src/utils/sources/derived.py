"""What sources share whose adapters are made of trained ones."""

from collections.abc import Callable
from typing import TypeVar

from utils.experiment import Experiment, Work
from utils.lora.bank import Adapter
from utils.processes import Processes
from utils.store.check import require_adapters
from utils.store.folders import Shapes
from utils.store.links import Saver

Source = TypeVar("Source")


def make_of_trained(
    trained: Experiment,
    pieces: list[tuple[Work, Source]],
    adapter_of: Callable[[Source, Shapes], Adapter],
    saver: Saver,
    processes: Processes,
) -> None:
    """Save `adapter_of(source, shapes)` for each `(work, source)` whose work `saver` needs. Raises
    `InputError` if an adapter that `encode.py` trains is missing."""
    base = require_adapters(trained, trained.works(), trained.settings)
    shapes = trained.bank().shapes(trained.recipe.lora_rank)
    own = processes.share(pieces)
    saver.begin([work for work, _ in own], base)
    for work, source in own:
        if saver.needs(work):
            saver.save([work], [adapter_of(source, shapes)])
