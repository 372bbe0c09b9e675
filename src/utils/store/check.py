"""Is every adapter there, sound, and the one of its place? One check for all that read adapters.

`encode.py` makes again what is missing or damaged, `inference.py` refuses it, `adapters.py verify`
names it. All refuse one that was made with other settings or from other texts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.experiment import Experiment, Work
from utils.files import relative
from utils.journal import differing, first_difference
from utils.lora.bank import LoraBank
from utils.running import InputError
from utils.store.base import open_base_adapter
from utils.store.folders import (
    Content,
    Shapes,
    adapter_files,
    check_config,
    is_shared,
    is_stored,
    load_adapter,
    read_training,
    read_weights,
    sound_fingerprint,
    stored_fingerprint,
)
from utils.store.packing import where_packed

RIGHT, MISSING, DAMAGED, OTHER = "right", "missing", "damaged", "made otherwise"
MOVED = "of another passage"  # see `moved.py`


@dataclass
class Checked:
    """What was found in an adapter's folder; `problem` is a sentence without its remedy."""

    folder: Path
    state: str
    problem: str = ""
    base: str | None = None  # the fingerprint of what it was trained from


def check_adapters(
    experiment: Experiment,
    works: Iterable[Work],
    settings: dict,
    weights: bool = False,
    shapes: Shapes | None = None,
) -> list[Checked]:
    """One entry for each folder of `works`, whose adapters must be made with `settings`. With
    `weights` the weights are read too, with `shapes` they must fit the model."""
    recipe = experiment.recipe
    read: dict[tuple, dict] = {}  # what hard links share is read once

    def record(folder: Path) -> dict:
        files = tuple(Content.of(folder / name) for name in adapter_files(folder))
        if files not in read:
            if not (shared := is_shared(folder)):
                check_config(folder, recipe.lora_rank, recipe.lora_alpha, "", "make it again")
            if shapes:
                load_adapter(folder, shapes)
            elif weights or shared:
                read_weights(folder)
            read[files] = read_training(folder)
        return read[files]

    def check(folder: Path, work: Work) -> Checked:
        if not is_stored(folder):
            return Checked(folder, MISSING, f"there is no adapter in {relative(folder)}")
        try:
            made_with = dict(record(folder))
        except (InputError, OSError) as error:
            return Checked(folder, DAMAGED, str(error))
        base = made_with.pop("base", None)
        asked = {**settings, **work.record}
        for name in {"dtype", "save_dtype"} - asked.keys():  # of the adapter, not of answering
            made_with.pop(name, None)
        if not (name := first_difference(made_with, asked)):
            return Checked(folder, RIGHT, base=base)
        words = differing(name, made_with, asked)
        return Checked(folder, OTHER, f"the adapter {relative(folder)} {words}", base)

    return [check(folder, work) for work in works for folder in work.folders]


def refuse_other_adapters(checked: list[Checked]) -> None:
    """Raise `InputError` for the first adapter that was made with other settings or texts."""
    remedy = "use the settings it was made with, or encode.py with --overwrite to train again"
    for one in checked:
        if one.state == OTHER:
            raise InputError(f"{one.problem}; {remedy}")


def require_adapters(experiment: Experiment, works: Iterable[Work], settings: dict) -> str | None:
    """The fingerprint of the base that all adapters of `works` were trained from. Raises
    `InputError` unless every adapter is there, right, and from the base that exists, if any."""
    checked = check_adapters(experiment, works, settings)
    refuse_other_adapters(checked)
    for one in checked:
        if one.state != RIGHT:
            encode = f"python src/encode.py {experiment.recipe.flags('model', 'data', 'adapter')}"
            raise InputError(f"{one.problem}; {where_packed(one.folder) or f'run first: {encode}'}")
    bases = {one.base: relative(one.folder) for one in checked}
    if len(bases) > 1:
        both = " and ".join([*bases.values()][:2])
        raise InputError(
            f"{both} were trained from different base adapters; run encode.py with --overwrite"
        )
    check_base(experiment, set(bases))
    return next(iter(bases), None)


def check_base(experiment: Experiment, trained_from: set[str | None]) -> str | None:
    """The fingerprint of the base adapter that exists, None without one. Raises `InputError` if
    adapters were `trained_from` another one."""
    folder = experiment.base_folder
    # a damaged pool has made all adapters damaged that have weights of it
    stored = (sound_fingerprint if experiment.recipe.shared else stored_fingerprint)(folder)
    if stored and (others := trained_from - {stored}):
        remedy = "put the first one back" if experiment.start else "delete that folder"
        raise InputError(
            f"adapters were trained from the base {others.pop()}, but {relative(folder)} is "
            f"{stored}: it was replaced; {remedy}, or train all again with encode.py --overwrite"
        )
    return stored


def open_base(experiment: Experiment, bank: LoraBank) -> dict:
    """The adapter that all passages start from; `base_weight` is made if it is not there."""
    if experiment.start:
        return load_adapter(experiment.start, bank.shapes(bank.rank))
    seed = experiment.recipe.seed
    return open_base_adapter(bank, experiment.base_folder, experiment.base_model, seed)
