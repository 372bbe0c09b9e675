"""Adapters of a corpus when its index has changed: their passages are elsewhere, or gone.

What is in the place of another passage is set aside within its folder `data_{did}`, under a
`passage_` number that no passage has. From there `Saver.share_existing` links it to its new place.
"""

import os
from contextlib import suppress
from pathlib import Path

from utils.experiment import Experiment, Work
from utils.files import remove_folder
from utils.journal import first_difference
from utils.layout import adapters_folder
from utils.store.check import MOVED, OTHER, RIGHT, Checked
from utils.store.folders import read_training, stored_adapters

OF_PASSAGE = ("base", "data", "beside", "group")  # what an adapter's record says of its passage


def _corpora(experiment: Experiment) -> list[Path]:
    """The folders of adapters of the data types without questions."""
    return [adapters_folder(experiment.recipe, name) for name in experiment.corpora]


def mark_moved(
    experiment: Experiment, works: list[Work], found: list[Checked], settings: dict
) -> None:
    """Among the `found` adapters of a corpus, give those the state `MOVED` that were made with
    `settings`, but of another passage or texts than their place has now. If none at all is of a
    text that the corpus has, it is another corpus, and they stay as they are."""
    corpora, wanted = _corpora(experiment), {work.data for work in works}
    others = [one for one in found if one.state == OTHER and one.folder.parents[1] in corpora]
    # another job of the array may have set one aside meanwhile
    records = {one.folder: read_training(one.folder) or settings for one in others}
    known = any(one.state == RIGHT for one in found)
    known = known or not wanted.isdisjoint(record.get("data") for record in records.values())
    for one in others if known else ():
        made_with = records[one.folder]
        kept = {name: made_with[name] for name in made_with if name not in OF_PASSAGE}
        own = {name: kept.get(name) for name in ("dtype", "save_dtype")}  # answering has none
        if not first_difference(kept, {**own, **settings}):
            one.state = MOVED


def set_aside(found: list[Checked]) -> str:
    """Free the places of `MOVED` adapters; a sentence about it, "" if there are none."""
    moved = [one.folder for one in found if one.state == MOVED]
    for folder in moved:
        number = 1
        while (free := folder.with_name(f"passage_{number}")).exists():
            number += 1
        with suppress(FileNotFoundError):  # another job of the array was first
            os.rename(folder, free)
    words = "adapters are of passages that the corpus has elsewhere now, has changed or lost"
    return f"{len(moved)} {words}" if moved else ""


def remove_unclaimed(experiment: Experiment, works: list[Work]) -> str:
    """Remove what was set aside, and adapters of passages that a corpus does not have any more; a
    sentence about it, "" if there are none. With `--sample` nothing is removed."""
    claimed = {folder for work in works for folder in work.folders}
    whole = experiment.recipe.sample == -1
    stored = [one for adapters in _corpora(experiment) for one in stored_adapters(adapters)]
    left = [folder for folder in stored if whole and folder not in claimed]
    for folder in left:
        remove_folder(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    return f"{len(left)} adapters that no passage of the corpus has are removed" if left else ""
