"""How texts are sampled: flags of `augment.py` and what they mean."""

import argparse
from dataclasses import dataclass, fields

from utils.arguments import positive_integer, seed_number


@dataclass(frozen=True)
class Sampling:
    """The settings of the sampling, each named as its flag."""

    max_new_tokens: int
    temperature: float
    top_k_sampling: int
    max_attempts: int
    seed: int
    pairs: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Sampling":
        """Those among the parsed flags."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})


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
    return group
