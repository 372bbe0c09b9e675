"""How a script runs: what the user can mend becomes one sentence, Ctrl-C and SIGTERM one line."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable


class InputError(Exception):
    """Something that the user gave is wrong; the message says what, where and what to do."""


def one_line(text: str) -> str:
    """`text`, which may come from data, as one line without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def run_stage(main: Callable[[], None]) -> None:
    """Run a script's `main`; what the user can mend becomes one sentence on stderr.

    Exit code 1 for an `InputError`, a failing disk and lack of memory; else 128 + the signal: 130
    after Ctrl-C, 143 after SIGTERM, 141 if what reads the output has ended.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except InputError as error:
        _close_progress_bars(error)
        sys.exit(f"error: {one_line(str(error))}")
    except KeyboardInterrupt as interruption:
        _close_progress_bars(interruption)
        _ignore_interruptions()
        print(
            "interrupted: complete work is kept; start the same command again, without --overwrite",
            file=sys.stderr,
        )
        sys.exit(128 + int((interruption.args or (signal.SIGINT,))[0]))
    except BrokenPipeError:  # what reads the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _close_progress_bars(error)
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {name}{error.strerror or error}; check the name, disk and your rights")
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError on a GPU; on a CPU torch has no class of its own
        if not re.search("MemoryError|not enough memory|allocate memory", repr(error)):
            raise
        _close_progress_bars(error)
        sys.exit(
            "error: the memory is full; lower --batch_size, --adapters_per_batch or --max_length"
        )
    else:
        _ignore_interruptions()


def _ignore_interruptions() -> None:
    """The end is on its way: a further Ctrl-C would only show what the interpreter is tidying."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _close_progress_bars(error: BaseException | None) -> None:
    """Free what the stopped functions held: a bar then ends its line."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
