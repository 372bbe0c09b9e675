"""The adapters of another question's passages, in the place of a question's own.

The control "the right knowledge, or any": format and style of the data set are in these adapters
too, the answer is not. Each question takes those of another one that shares no passage with it.
"""

import random
from pathlib import Path

from utils.experiment import Experiment, Work
from utils.files import hash_json
from utils.processes import Processes
from utils.running import InputError
from utils.sources.derived import make_of_trained
from utils.store.folders import load_adapter
from utils.store.links import Saver

Passages = list[tuple[Path, dict]]  # of a question: an adapter's folder and the passage's entry


def works(experiment: Experiment) -> list[Work]:
    """One adapter for each different one that is taken; its data are those of the taken one."""
    return [work for work, _ in _taken(experiment)]


def make(
    experiment: Experiment,
    works: list[Work],
    saver: Saver,
    processes: Processes,
    adapters_per_batch: int | None,
) -> None:
    """Take what `encode.py` has trained; `InputError` if one of them is missing."""
    make_of_trained(experiment.trained, _taken(experiment), load_adapter, saver, processes)


def _taken(experiment: Experiment) -> list[tuple[Work, Path]]:
    """The adapters to make, and the folder of the trained one that each of them is."""
    trained = experiment.trained
    taken: dict[str, tuple[Work, Path]] = {}
    for data_type in experiment.records:
        questions = experiment.passages(data_type)
        of_trained = trained.passages(data_type)
        for own, giver in zip(questions, exchanged(questions, trained.recipe.seed), strict=True):
            for place, (folder, _) in enumerate(own):
                source = of_trained[giver][place % len(of_trained[giver])]
                [work] = trained.works([source])
                key = hash_json([work.record, data_type])
                made, _ = taken.setdefault(key, (Work([], key, []), source[0]))
                made.folders.append(folder)
    return list(taken.values())


def exchanged(questions: list[Passages], seed: int) -> list[int]:
    """For each question the number of the one whose adapters it takes, with which it shares no
    passage. Each gives once, unless too many share passages: then some give more often. A question
    without passages takes none. Raises `InputError` if a question shares with all others."""
    held = [{entry["passage"] for _, entry in passages} for passages in questions]
    full, rng = [i for i, own in enumerate(held) if own], random.Random(seed)
    givers = dict(zip(full, rng.sample(full, len(full)), strict=True))
    for i in full:
        if not held[i] & held[givers[i]]:
            continue
        for j in rng.sample(full, len(full)):  # two that may take each other's giver
            if not held[i] & held[givers[j]] and not held[j] & held[givers[i]]:
                givers[i], givers[j] = givers[j], givers[i]
                break
        else:
            apart = [j for j in full if not held[i] & held[j]]
            if not apart:
                raise InputError(
                    f"--adapters others: question {i} shares a passage with each of the "
                    f"{len(questions)} questions; take more questions"
                )
            givers[i] = rng.choice(apart)
    return [givers.get(i, i) for i in range(len(questions))]
