"""One adapter for all passages of a data type: the mean of their trained ones.

The control "task format without knowledge": what all passages' adapters have in common. A and B
are averaged element by element; all started from the same base.
"""

import torch

from utils.experiment import Experiment, Work
from utils.files import hash_json
from utils.lora.bank import Adapter
from utils.processes import Processes
from utils.sources.derived import make_of_trained
from utils.store.folders import Shapes, load_adapter
from utils.store.links import Saver


def works(experiment: Experiment) -> list[Work]:
    """One adapter for each data type; its data are those of the adapters in it."""
    averaged = []
    for data_type in experiment.records:
        own = _works_of(experiment, data_type)
        folders = [folder for work in own for folder in work.folders]
        averaged.append(Work([], hash_json([work.data for work in own]), folders))
    return averaged


def make(
    experiment: Experiment,
    works: list[Work],
    saver: Saver,
    processes: Processes,
    adapters_per_batch: int | None,
) -> None:
    """Average the adapters that `encode.py` has trained; `InputError` if one of them is missing."""
    trained = experiment.trained
    sources = [_works_of(trained, data_type) for data_type in trained.records]
    pieces = list(zip(works, sources, strict=True))
    make_of_trained(trained, pieces, _mean, saver, processes)


def _works_of(experiment: Experiment, data_type: str) -> list[Work]:
    questions = experiment.passages(data_type)
    return experiment.works([passage for passages in questions for passage in passages])


def _mean(works: list[Work], shapes: Shapes) -> Adapter:
    """The mean of different adapters, each counted once."""
    sums = {name: [torch.zeros(shape) for shape in both] for name, both in shapes.items()}
    for work in works:
        for name, pair in load_adapter(work.folders[0], shapes).items():
            for total, tensor in zip(sums[name], pair, strict=True):
                total += tensor
    return {name: (A / len(works), B / len(works)) for name, (A, B) in sums.items()}
