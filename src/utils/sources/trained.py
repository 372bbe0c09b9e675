"""Adapters that are trained on their passages (Additional Parameter Training, section 3.2.2)."""

from functools import partial

import torch

from utils.experiment import Experiment, Work
from utils.files import read_json, write_json
from utils.layout import adapters_folder, groups_file
from utils.lora.examples import Steps
from utils.lora.memory import adapters_that_fit
from utils.lora.objectives import OBJECTIVES
from utils.lora.training import SCHEDULES, State, group_by_cost, train_as_fits
from utils.neighbours import met_by, read_plan
from utils.processes import Processes
from utils.sources.shared import PASSAGES, make_shared
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
    """Train the adapters of `works` in groups (None: as many side by side as fit), with neighbours
    those of the plan. Groups depend on the whole list, so a resumed run trains the same ones."""
    recipe, batch_size = experiment.recipe, experiment.recipe.per_device_train_batch_size
    if recipe.shared:
        make_shared(experiment, works, saver, processes, adapters_per_batch or PASSAGES)
        return
    bank = experiment.bank(experiment.load_model())
    if processes.is_main:
        open_base(experiment, bank)
    processes.wait()
    base = open_base(experiment, bank)
    examples = [work.examples for work in works]
    size = adapters_per_batch or adapters_that_fit(bank, examples, batch_size, recipe.neighbours)
    size, plan = processes.agree(size), None
    if recipe.neighbours:
        plan = read_plan(adapters_folder(recipe, next(iter(experiment.records))))
        place = {work.data: number for number, work in enumerate(works)}
        groups = [[place[data] for data in group] for group in plan["groups"]]
    elif experiment.corpora:
        groups = _lasting_groups(experiment, works, size, saver, processes)
    else:
        groups = group_by_cost(examples, size)
    groups = processes.share(groups)
    saver.begin([works[i] for group in groups for i in group], fingerprint(base))
    more = {"schedule": SCHEDULES[recipe.schedule]}
    for number, group in enumerate(groups, 1):
        members = [works[i] for i in group]
        if any(map(saver.needs, members)):
            steps = [Steps(one.examples, batch_size, recipe.num_train_epochs) for one in members]
            more["after_step"] = partial(_tell, saver, f"group {number}/{len(groups)}", steps)
            if plan:
                more |= {"neighbours": met_by(members, plan, recipe.seed), "side_by_side": size}
            objective = OBJECTIVES[recipe.objective]
            adapters = train_as_fits(bank, base, steps, objective, recipe.learning_rate, **more)
            saver.save(members, adapters)


def _lasting_groups(
    experiment: Experiment, works: list[Work], size: int, saver: Saver, processes: Processes
) -> list[list[int]]:
    """Groups of `works` for a corpus, which may grow: those of earlier runs stay as they were, so
    new passages are trained alone, and a stopped run goes on with the same groups."""
    path = groups_file(experiment.recipe)
    kept = path.exists() and not saver.replace
    known = read_json(path, "the list of groups") if kept else []
    trained = {data for group in known for data in group}
    new = [work for work in works if work.data not in trained]
    more = [
        [new[i].data for i in group] for group in group_by_cost([one.examples for one in new], size)
    ]
    if more and (processes.is_main or processes.is_shard):
        write_json(path, known + more)
    processes.wait()
    place = {work.data: number for number, work in enumerate(works)}
    groups = [[place[data] for data in group if data in place] for group in known + more]
    return [group for group in groups if group]


def _tell(saver: Saver, group: str, steps: list[Steps], state: State, losses: torch.Tensor) -> None:
    saver.tell(f"{group}, step {state.steps}/{max(map(len, steps))}")
