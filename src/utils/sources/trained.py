"""Adapters that are trained on their passages (Additional Parameter Training, section 3.2.2)."""

from utils.experiment import Experiment, Work
from utils.lora.examples import Steps
from utils.lora.memory import adapters_that_fit
from utils.lora.objectives import OBJECTIVES
from utils.lora.training import group_by_cost, train_as_fits
from utils.processes import Processes
from utils.store.check import open_base
from utils.store.folders import fingerprint
from utils.store.links import Saver


def works(experiment: Experiment) -> list[Work]:
    """One adapter for each distinct training data."""
    return experiment.works()


def make(
    experiment: Experiment,
    works: list[Work],
    saver: Saver,
    processes: Processes,
    adapters_per_batch: int | None,
) -> None:
    """Train the adapters of `works` in groups (None: as many side by side as fit). The groups
    depend on the whole list, so a resumed run trains the same ones."""
    recipe, batch_size = experiment.recipe, experiment.recipe.per_device_train_batch_size
    bank = experiment.bank(experiment.load_model())
    if processes.is_main:
        open_base(experiment, bank)
    processes.wait()
    base = open_base(experiment, bank)
    examples = [work.examples for work in works]
    size = adapters_per_batch or adapters_that_fit(bank, examples, batch_size)
    groups = processes.share(group_by_cost(examples, processes.agree(size)))
    saver.begin([works[i] for group in groups for i in group], fingerprint(base))
    for group in groups:
        members = [works[i] for i in group]
        if any(map(saver.needs, members)):
            steps = [Steps(one.examples, batch_size, recipe.num_train_epochs) for one in members]
            objective = OBJECTIVES[recipe.objective]
            saver.save(members, train_as_fits(bank, base, steps, objective, recipe.learning_rate))
