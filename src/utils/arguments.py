"""Parsers of the command line; nothing heavy is imported, so that `--help` comes at once."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from utils.running import InputError

LAUNCH_REMEDY = "start with torchrun or accelerate launch, or unset WORLD_SIZE"


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and a stage's docstring with its line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        hidden = action.default is None or action.default is False
        return action.help if hidden else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """If a required flag is missing, it also names unknown ones: they may be misspelt."""

    def error(self, message: str) -> None:
        """Print usage and `message`, and end with exit code 2."""
        if "required" in message and "COMMAND" not in message:
            words = [word.partition("=")[0] for word in sys.argv[1:]]
            unknown = [w for w in words if w[:2] == "--" and w not in self._option_string_actions]
            message += f"; there is no {', '.join(unknown)}" if unknown else ""
        super().error(message)


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose `--help` begins with the stage's docstring."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def _number(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], words: str) -> Any:
    """`text` as a number that `fits`; `words` say in the error what it is not."""
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        shown = text if len(text) <= 40 else f"{text[:40]}…"  # Python reads up to 4300 digits
        raise argparse.ArgumentTypeError(f"{shown!r} is not {what}") from None
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text} is not {words}")
    return value


def positive_integer(text: str) -> int:
    """An integer above 0, for argparse; below 2**31, as libraries count with 32 bits."""
    return _number(text, int, lambda value: 0 < value < 2**31, "above 0 and below 2**31")


def whole_number(text: str) -> int:
    """An integer from 0, for argparse."""
    return _number(text, int, lambda value: value >= 0, "0 or above")


def sample_number(text: str) -> int:
    """How many questions to take, for argparse: above 0, or -1 for all."""
    return -1 if text == "-1" else positive_integer(text)


def seed_number(text: str) -> int:
    """A seed that every random number generator takes, for argparse."""
    return _number(text, int, lambda value: 0 <= value < 2**63, "between 0 and 2**63 - 1")


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def probability(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    return _number(text, float, lambda value: 0 <= value <= 1, "between 0 and 1")


def launcher_says(name: str, default: str = "") -> int:
    """The number in a variable that a launcher sets; `InputError` if there is none."""
    text = os.environ.get(name, default)
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise InputError(
            f"the variable {name} is {text!r} and not a number as a launcher sets it; "
            + LAUNCH_REMEDY
        )
    return int(text)


def shard_of(text: str) -> tuple[int, int]:
    """`I/N` of `--shard`, for argparse: job I of N, counted from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 0/4 to 3/4 for four jobs")
    if launcher_says("WORLD_SIZE", "1") != 1:
        raise argparse.ArgumentTypeError("a launcher splits the work already; leave --shard out")
    return int(index), int(count)


def add_shard_flag(group: argparse._ArgumentGroup) -> None:
    """`--shard I/N`."""
    words = "I/N: part I (from 0) of N; a run without it puts all parts together (not set: all)"
    group.add_argument("--shard", type=shard_of, help=words)
