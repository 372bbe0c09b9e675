"""Which passages an adapter is trained beside (`--neighbours K`), and in which groups.

For each question that a model wrote about a passage: the first K other passages that the index
returns, of those that this run encodes. No question of a data set is used. Passages that are
neighbours of each other are trained in one group, and an adapter knows none outside of its own.

The plan, `neighbours.json` in each data type's folder of adapters, is a function of `data_aug`, the
index, the recipe and the group size: {"index", "group_size", "groups": [[data, ...], ...],
"lists": {data: [[data, ...], ...]}}; a passage goes by the hash of its training data.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import hash_json, read_object, relative, write_json
from utils.layout import adapters_folder, neighbours_file
from utils.lora.neighbours import Neighbours, drawn
from utils.processes import Processes
from utils.retrieval import ENGINES, PassageIndex
from utils.running import InputError

if TYPE_CHECKING:
    from utils.experiment import Experiment, Work

SEARCHED = 100  # hits among which the encoded passages are found
QUESTIONS = 100  # in one search
GROUP_SIZE = 32  # if --adapters_per_batch is not set: the same on every machine


def make_plan(experiment: "Experiment", options: argparse.Namespace, processes: Processes) -> None:
    """Write the plan for all data types of `experiment`, and say which share of the neighbours is
    in other groups; `options` are the flags of `encode.py`. Raises `InputError` if adapters were
    made by another plan (unless `--overwrite`), or if the index holds no encoded passage."""
    index = ENGINES[options.engine].open_index(options)
    size = options.adapters_per_batch or GROUP_SIZE
    lists = neighbour_lists(experiment.works(grouped=False), index, experiment.recipe.neighbours)
    groups = partition(lists, size)
    group_of = {data: number for number, group in enumerate(groups) for data in group}
    kept = {
        data: [[one for one in own if group_of[one] == group_of[data]] for own in lists[data]]
        for data in lists
    }
    everyone, inside = (
        sum(len(own) for of in some.values() for own in of) for some in (lists, kept)
    )
    plan = {"index": index.identity, "group_size": size, "groups": groups, "lists": kept}
    for data_type in experiment.records if processes.is_main or processes.is_shard else ():
        adapters = adapters_folder(experiment.recipe, data_type)
        present = neighbours_file(adapters).is_file() and any(adapters.glob("data_*"))
        if present and not options.overwrite and read_plan(adapters) != plan:
            raise InputError(
                f"{relative(adapters)} was trained with other neighbours: the index, the texts, "
                "--sample, --data_type or --adapters_per_batch was another one; use the same, or "
                "train all again with --overwrite"
            )
        write_json(neighbours_file(adapters), plan)
    processes.wait()
    processes.say(
        f"neighbours: {len(lists)} passages in {len(groups)} groups; {everyone - inside} of "
        f"{everyone} neighbours are in another group and left out"
    )


def read_plan(adapters: Path) -> dict:
    """The plan in a data type's folder of adapters; `InputError` without one."""
    path = neighbours_file(adapters)
    if not path.is_file():
        raise InputError(f"there is no {relative(path)}; run encode.py with the same flags first")
    return read_object(path, "the list of neighbours")


def read_groups(adapters: Path) -> dict[str, tuple[str, list]]:
    """For each passage the hash of its group (who is in it, and who meets whom) and its lists."""
    plan, found = read_plan(adapters), {}
    for group in plan["groups"]:
        own = {data: plan["lists"][data] for data in group}
        found |= {data: (hash_json(list(own.items())), own[data]) for data in group}
    return found


def neighbour_lists(works: list["Work"], index: PassageIndex, count: int) -> dict[str, list]:
    """For each work the lists of its `count` neighbours, one for each question of its passage."""
    of_passage: dict[str, str] = {}
    for work in works:
        of_passage.setdefault(work.entry["passage"], work.data)
    asked = list(dict.fromkeys(pair["question"] for work in works for pair in work.entry["qa"]))
    found: dict[str, list[str]] = {}
    for start in range(0, len(asked), QUESTIONS):
        block = asked[start : start + QUESTIONS]
        for question, hits in zip(block, index.search(block, SEARCHED), strict=True):
            texts = [hit["text"] for hit in hits if hit["text"] in of_passage]
            found[question] = texts
    if not any(found.values()):
        raise InputError(
            "the index holds none of the encoded passages; give the --index_name (and --engine) of "
            "the corpus that augment.py searched"
        )
    lists = {}
    for work in works:
        others = [
            [t for t in found[p["question"]] if t != work.entry["passage"]]
            for p in work.entry["qa"]
        ]
        lists[work.data] = [[of_passage[text] for text in texts[:count]] for texts in others]
    return lists


def partition(lists: dict[str, list[list[str]]], size: int) -> list[list[str]]:
    """The passages in groups of at most `size` that hold many of each other's neighbours.

    A group grows by the passage with the most ties to it, the first of equal ones; without any tie
    by the first that is left.
    """
    ties: dict[str, Counter] = {data: Counter() for data in lists}
    for data, of in lists.items():
        for one in (one for own in of for one in own):
            ties[data][one] += 1
            ties[one][data] += 1
    place = {data: number for number, data in enumerate(lists)}
    left, groups = dict.fromkeys(lists), []
    while left:
        group: list[str] = []
        near: Counter = Counter()
        while left and len(group) < size:
            best = max(near, key=lambda one: (near[one], -place[one])) if near else next(iter(left))
            group.append(best)
            del left[best]
            near += Counter({one: n for one, n in ties[best].items() if one in left})
            near.pop(best, None)
        groups.append(group)
    return groups


def met_by(members: list["Work"], plan: dict, seed: int) -> Neighbours:
    """Whom each member of a group meets at each step."""
    place = {work.data: number for number, work in enumerate(members)}
    lists = [[[place[one] for one in own] for own in plan["lists"][w.data]] for w in members]
    return drawn(lists, [f"{seed} {work.data}" for work in members])
