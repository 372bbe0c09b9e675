"""Parsers of the command line; nothing heavy is imported, so that `--help` comes at once."""

import argparse
import sys


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and a stage's docstring with its line breaks."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Where a required flag is missing, names the flags that are none: it may be misspelt."""

    def error(self, message: str) -> None:
        """Print usage and `message`, and end with exit code 2."""
        if "are required" in message and "COMMAND" not in message:
            words = [word.partition("=")[0] for word in sys.argv[1:]]
            unknown = [w for w in words if w[:2] == "--" and w not in self._option_string_actions]
            message += f"; there is no {', '.join(unknown)}" if unknown else ""
        super().error(message)


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose `--help` begins with the stage's docstring."""
    return Parser(description=description, formatter_class=HelpFormatter, allow_abbrev=False)


def positive_integer(text: str) -> int:
    """An integer above 0, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def whole_number(text: str) -> int:
    """An integer from 0, for argparse."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def seed_number(text: str) -> int:
    """A seed that every random number generator takes, for argparse."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**63 - 1")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
