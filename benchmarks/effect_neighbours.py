"""What of the neighbours does it: `encode.py --neighbours` with one thing changed.

    python benchmarks/effect_neighbours.py --variant random --model_name data/demo/demo-model \
        --prompts demo --dataset demo --data_type dev --learning_rate 4e-3 --num_train_epochs 3 \
        --schedule halving --neighbours 2 --index_name demo

`random`: other passages of the run at random in place of the retrieved ones. `frozen`: neighbours
as an earlier training alone left them, not as they are now. `half`: no neighbours at half of the
steps. `grown`: passages that have an adapter under `--from_root`, trained with a smaller --sample,
keep it, and the new ones are trained beside them. `two_hop`: a question about a person whose name
is replaced by the role in another passage ("the director of ...") is trained with the adapters of
both passages and a gradient into both; `two_hop_alone`: with the person's passage and its usual
neighbours, without the other one. The flags are those of `encode.py`; `inference.py` then answers.
As the settings do not tell the variants apart, give each a PRAG_ROOT of its own.
"""

import argparse
import random
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import encode
from utils.arguments import new_parser
from utils.files import hash_json
from utils.lora.examples import Steps
from utils.recipe import add_flags
from utils.retrieval import add_index_flags
from utils.running import run_stage


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line: the variant, and the flags of `encode.py`."""
    parser = new_parser(__doc__)
    variants = ["random", "frozen", "half", "grown", "two_hop", "two_hop_alone"]
    parser.add_argument("--variant", choices=variants, required=True, help="what is changed")
    parser.add_argument("--from_root", type=Path, help="PRAG_ROOT of the old adapters (only grown)")
    add_flags(parser, "model", "data", "adapter")
    add_index_flags(parser, parser.add_argument_group("search for neighbours"))
    return parser.parse_args(arguments)


def randomly(lists: Callable) -> Callable:
    """Lists as long as those of `lists`, of other works at random."""

    def drawn(works: list, index: Any, count: int) -> dict[str, list[list[str]]]:
        chosen = {}
        for data, own in lists(works, index, count).items():
            others = [work.data for work in works if work.data != data]
            rng = random.Random(data)
            chosen[data] = [rng.sample(others, len(one)) for one in own]
        return chosen

    return drawn


def half_of(drawn: Callable) -> Callable:
    """No neighbours at every second step."""

    def sometimes(lists: list, keys: list[str]) -> Callable[[int, int], list[int]]:
        met = drawn(lists, keys)
        return lambda adapter, step: met(adapter, step) if step % 2 else []

    return sometimes


def frozen(training: Any) -> Callable:
    """`train_as_fits` in two rounds: alone, then beside the adapters of the first round."""
    from utils.lora.bank import stack

    train, join = training.train_as_fits, training.beside

    def twice(bank: Any, base: dict, steps: list, objective: Any, rate: float, **more: Any) -> list:
        met = more.pop("neighbours")
        first = train(bank, base, steps, objective, rate, **more)
        # `train_adapters` numbers its adapters by their steps, the most first
        order = sorted(range(len(steps)), key=lambda i: -len(steps[i]))
        kept = stack([first[i] for i in order], bank.devices(), next(iter(base.values()))[0].dtype)
        with patch.object(training, "beside", lambda own, _, places: join(own, kept, places)):
            return train(bank, base, steps, objective, rate, neighbours=met, **more)

    return twice


def grown(training: Any, old: Path | None) -> Callable:
    """`train_as_fits` of which the members with an adapter under `old` have it and take no step."""
    from utils.store.folders import load_adapter, read_training

    train = training.train_as_fits
    folders = old.glob("offline/*/*/demo/*/*/*/data_*/passage_*") if old else ()
    by_data = {read_training(folder)["data"]: folder for folder in folders}

    def some(bank: Any, base: dict, steps: list, objective: Any, rate: float, **more: Any) -> list:
        hashes = [hash_json([example.ids for example in own.examples]) for own in steps]
        known = [by_data.get(data) for data in hashes]
        left = [[] if folder else own for own, folder in zip(steps, known, strict=True)]
        # `train_adapters` numbers its adapters by their steps, the most first
        order = sorted(range(len(left)), key=lambda i: -len(left[i]))

        def resume(state: Any) -> None:
            for row, folder in enumerate(known[i] for i in order):
                if folder:
                    adapter = load_adapter(folder, bank.shapes(bank.rank))
                    tensors = [tensor for name in base for tensor in adapter[name]]
                    for parameter, tensor in zip(state.parameters, tensors, strict=True):
                        parameter[row] = tensor

        print(f"{sum(map(bool, known))} of {len(known)} adapters of this group are old")
        return train(bank, base, left, objective, rate, resume=resume, **more)

    return some


class TwoHops:
    """The usual training, with two-hop questions at the end of each pass (`two_hop`).

    Both passages of a question take the same step at the same time, each beside the other, so the
    two gradients are those of one loss by both adapters.
    """

    ROLES: ClassVar = {"direct": "director", "found": "founder", "mayor": "mayor", "gov": "mayor"}

    def __init__(self, source: Any, both: bool):
        self.both = both
        self.usual, self.train, self.encode = source.met_by, source.train_as_fits, source.make

    def make(self, experiment: Any, *more: Any) -> None:
        """`make` of the source, whose encoder makes the prompts."""
        self.encoder = experiment.encoder
        self.encode(experiment, *more)

    def met_by(self, members: list, plan: dict, seed: int) -> Callable[[int, int], list[int]]:
        """Whom each member meets: its partner at the questions of two, else its neighbours."""
        self.asked = {i: [] for i in range(len(members))}  # member -> (partner, question's prompt)
        entries = [work.entry for work in members]
        for i, person in enumerate(entries):
            for j, thing in enumerate(entries):
                for question, answer in self._questions(person, thing):
                    prompt = self.encoder.example(question, [], answer)
                    self.asked[i].append((j, prompt))
                    if self.both:
                        self.asked[j].append((i, prompt))
        met, usual = self.usual(members, plan, seed), [len(work.examples) for work in members]

        def beside(member: int, step: int) -> list[int]:
            partners = self.asked[member]
            place = step % (usual[member] + len(partners)) - usual[member]
            return [partners[place][0]] if place >= 0 and self.both else met(member, step)

        print(f"{sum(map(len, self.asked.values()))} steps of two-hop questions in a pass")
        return beside

    def _questions(self, person: dict, thing: dict) -> list[tuple[str, str]]:
        name, other = person["title"], thing["title"]
        linked = name != other and other in person["passage"] and name in thing["passage"]
        role = next((r for stem, r in self.ROLES.items() if stem in thing["passage"]), None)
        if not (linked and role):
            return []
        return [
            (pair["question"].replace(name, f"the {role} of {other}"), pair["answer"])
            for pair in person["qa"]
            if name in pair["question"] and pair["answer"] != other
        ]

    def train_as_fits(
        self, bank: Any, base: dict, steps: list, *more: Any, **keywords: Any
    ) -> list:
        """`train_as_fits` with these questions added."""
        longer = [
            Steps([*own.examples, *(prompt for _, prompt in self.asked[i])], 1, own.epochs)
            for i, own in enumerate(steps)
        ]
        return self.train(bank, base, longer, *more, **keywords)


def main() -> None:
    """Change one thing and encode."""
    options, flags = parse_arguments(), list(sys.argv)
    for own in ("--variant", "--from_root"):
        if own in flags:
            del flags[flags.index(own) : flags.index(own) + 2]
    from utils import neighbours
    from utils.lora import training
    from utils.sources import trained

    changes = {
        "random": (neighbours, "neighbour_lists", randomly(neighbours.neighbour_lists)),
        "half": (neighbours, "drawn", half_of(neighbours.drawn)),
        "frozen": (trained, "train_as_fits", frozen(training)),
        "grown": (trained, "train_as_fits", grown(training, options.from_root)),
    }
    with ExitStack() as patches:
        patches.enter_context(patch.object(sys, "argv", flags))
        if options.variant.startswith("two_hop"):
            own = TwoHops(trained, options.variant == "two_hop")
            for name in ("make", "met_by", "train_as_fits"):
                patches.enter_context(patch.object(trained, name, getattr(own, name)))
        else:
            patches.enter_context(patch.object(*changes[options.variant]))
        encode.main()


if __name__ == "__main__":
    run_stage(main)
