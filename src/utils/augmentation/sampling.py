"""How texts are sampled: flags of `augment.py` and what they mean."""

import argparse
from dataclasses import dataclass, fields
from typing import Any

from utils.arguments import positive_integer, seed_number
from utils.prompting import PromptSet

SWITCHES = {"on": True, "off": False}


@dataclass(frozen=True)
class Sampling:
    """The settings of the sampling, each named as its flag. `constrained`: question lists are held
    to their form; `check_answers`: a pair counts only if its answer occurs in the passage."""

    max_new_tokens: int
    temperature: float
    top_k_sampling: int
    max_attempts: int
    seed: int
    pairs: int
    constrained: bool
    check_answers: bool

    @classmethod
    def of(cls, options: argparse.Namespace, prompts: PromptSet) -> "Sampling":
        """Those among the parsed flags. "auto" constrains lists whose form the prompts show."""
        chosen = {field.name: getattr(options, field.name) for field in fields(cls)}
        constrained = SWITCHES.get(options.constrained, bool(prompts.pair_order))
        checked = SWITCHES.get(options.check_answers, constrained)
        return cls(**chosen | {"constrained": constrained, "check_answers": checked})

    @classmethod
    def greedy(cls, max_new_tokens: int) -> "Sampling":
        """The most likely text, in no form."""
        return cls(max_new_tokens, 0.0, 1, 1, 0, 3, False, False)

    @property
    def recorded(self) -> dict[str, Any]:
        """What is kept beside the texts; `False` is what a record without the setting means."""
        return {name: value for name, value in vars(self).items() if value is not False}


def temperature(text: str) -> float:
    """A sampling temperature, for argparse."""
    value = float(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text} is not 0 (greedy) or a small positive number")
    return value


def pairs_number(text: str) -> int:
    """How many question-answer pairs, for argparse: three (the paper) or more."""
    value = positive_integer(text)
    if value < 3:
        raise argparse.ArgumentTypeError(f"{text} is below 3, which is one list")
    return value


def add_sampling_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """A flag for each field of `Sampling`; gives argparse's group for more."""
    group = parser.add_argument_group("writing")
    for name, kind, default, meaning in (
        ("max_new_tokens", positive_integer, 512, "tokens of one text at most"),
        ("temperature", temperature, 0.7, "sampling temperature; 0 is greedy"),
        ("top_k_sampling", positive_integer, 50, "sample from the K best tokens"),
        ("max_attempts", positive_integer, 5, "tries at a valid list before a passage is dropped"),
        ("seed", seed_number, 0, "seed of the sampling"),
        ("pairs", pairs_number, 3, "question-answer pairs of a passage, from lists of three"),
    ):
        group.add_argument(f"--{name}", type=kind, default=default, help=meaning)
    for name, meaning in (
        (
            "constrained",
            "hold question lists to their form, token by token, or by a server's response_format; "
            "auto: if the prompt set shows the form",
        ),
        (
            "check_answers",
            "a pair counts only if its answer occurs in the passage (a constrained model here "
            "can write no other) and its question is new; auto: if lists are constrained",
        ),
    ):
        group.add_argument(f"--{name}", choices=("auto", *SWITCHES), default="auto", help=meaning)
    return group
