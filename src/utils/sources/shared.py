"""Adapters that all passages share: `encode.py --shared M` (Poly-PRAG, arXiv:2511.17044).

The first run trains the pool and its passages' weights together. Passages that come later, of a
corpus that has grown or of further questions, have their weights trained alone: the pool stays.
"""

from pathlib import Path

import torch

from utils.experiment import Experiment, Work
from utils.files import hash_json, relative
from utils.journal import refuse_difference
from utils.lora.bank import Adapter, LoraBank
from utils.lora.examples import Steps
from utils.lora.objectives import OBJECTIVES
from utils.lora.shared import first_numbers, in_turns, train_shared
from utils.lora.training import SCHEDULES
from utils.processes import Processes
from utils.running import InputError
from utils.store.checkpoint import Checkpoint, begun_with
from utils.store.folders import (
    fingerprint,
    load_adapter,
    read_training,
    save_adapter,
    sound_fingerprint,
    stored_fingerprint,
)
from utils.store.links import Saver

PASSAGES = 8  # of a step, if --adapters_per_batch is not set
SAVE_STEPS = 500  # between two checkpoints


def check_steps(experiment: Experiment, size: int) -> None:
    """Raise `InputError` if the pool that is there was trained with other than `size` passages in a
    step."""
    made_with = read_training(experiment.base_folder) or {}
    if made_with.get("side_by_side", size) != size:
        raise InputError(
            f"the pool {relative(experiment.base_folder)} was trained with --adapters_per_batch "
            f"{made_with['side_by_side']}; leave it out, or use --overwrite to train all again"
        )


def make_shared(
    experiment: Experiment, works: list[Work], saver: Saver, processes: Processes, size: int
) -> None:
    """Train the pool, unless there is one, and the weights of the `works` that `saver` needs, with
    `size` passages in a step. Raises `InputError` if an unfinished training is of other passages,
    or if the pool was made with other settings."""
    if processes.count > 1:
        remedy = "start it with python, without --shard and a launcher"
        raise InputError(f"--shared trains all passages together, in one process; {remedy}")
    recipe, place = experiment.recipe, experiment.base_folder
    unfinished = place.with_name(f".{place.name}.checkpoint.safetensors")
    settings = _plan(works, saver, place, unfinished, size)
    of_data = {work.data: work for work in works}
    members = [of_data[data] for data in settings["members"]]
    frozen = settings["pool"] is not None

    bank = experiment.bank(experiment.load_model())
    pool, start = _pool(experiment, bank, frozen)
    matrices = len(bank.layers)
    numbers = [first_numbers(recipe.seed, one.data, matrices, recipe.shared) for one in members]
    epochs, batch_size = recipe.num_train_epochs, recipe.per_device_train_batch_size
    steps = [Steps(work.examples, batch_size, epochs) for work in members]
    old = [place, *(f for one in members for f in one.folders)] if saver.replace else []
    turns, what = in_turns(steps, size, recipe.seed), "weights" if frozen else "pool"
    point = Checkpoint(unfinished, settings, SAVE_STEPS, len(turns), old, what)
    try:
        weights = train_shared(
            bank, pool, torch.stack(numbers), steps, OBJECTIVES[recipe.objective],
            recipe.learning_rate, turns, SCHEDULES[recipe.schedule], frozen,
            resume=point.resume, after_step=point.after_step,
        )  # fmt: skip
    except torch.OutOfMemoryError:
        problem = f"the GPU's memory does not hold a step of {size} passages"
        raise InputError(f"{problem}; use a smaller --adapters_per_batch") from None
    point.bar.close()
    if not frozen:
        passages = {"passages": len(members), "members": hash_json(settings["members"])}
        made_with = {**saver.settings, "base": start, **passages, "side_by_side": size}
        dtype = getattr(torch, saver.settings["save_dtype"])
        alpha = recipe.lora_alpha * recipe.shared  # so that alpha / rank is as it was
        save_adapter(pool, place, alpha, experiment.base_model, made_with, dtype)
    saver.begin(members, stored_fingerprint(place))
    saver.save(members, weights)
    saver.writing.result()
    unfinished.unlink()  # all is on the disk


def _plan(works: list[Work], saver: Saver, place: Path, unfinished: Path, size: int) -> dict:
    """The settings of this training: whose weights it trains (`members`, by the hash of their
    data), and the fingerprint of the `pool` if that exists and stays. A training that was stopped
    goes on with its own."""
    stored = None if saver.replace else sound_fingerprint(place)
    everyone = [work.data for work in works]
    needed = [work.data for work in works if saver.needs(work)]
    plan = {"members": needed, "pool": stored}
    begun = None if saver.replace else begun_with(unfinished)
    if begun and not {*needed} & {*begun["members"]} and {*begun["members"]} <= {*everyone}:
        unfinished.unlink()  # killed when all of it was on the disk
        begun = None
    if begun:
        plan = {name: begun[name] for name in plan}
        if not set(needed) <= set(plan["members"]) <= {*everyone}:
            raise InputError(
                f"the unfinished training in {relative(unfinished)} is of other passages; use the "
                "same data and --sample to finish it, or --overwrite to start again"
            )
        if plan["pool"] not in (None, stored):
            raise InputError(
                f"{relative(place)} was replaced since the training in {relative(unfinished)} "
                "began; put it back, or use --overwrite to start again"
            )
    if plan["pool"]:
        made_with = {n: v for n, v in read_training(place).items() if n in saver.settings}
        remedy = "use the settings it was made with, or --overwrite to train all again"
        refuse_difference(f"the pool {relative(place)}", made_with, saver.settings, remedy)
    return {**saver.settings, **plan, "side_by_side": size}


def _pool(experiment: Experiment, bank: LoraBank, frozen: bool) -> tuple[Adapter, str | None]:
    """The pool as training begins, and the fingerprint of what its adapters start from: M random
    ones, or M times the one that `--init_adapter` names."""
    recipe, shapes = experiment.recipe, bank.shapes(bank.rank * experiment.recipe.shared)
    if frozen:
        return load_adapter(experiment.base_folder, shapes), None
    if not experiment.start:
        return bank.new_base_adapter(recipe.seed, bank.rank * recipe.shared), None
    base, count = load_adapter(experiment.start, bank.shapes(bank.rank)), recipe.shared
    pool = {name: (A.repeat(count, 1), B.repeat(1, count)) for name, (A, B) in base.items()}
    return pool, fingerprint(base)
