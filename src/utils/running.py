"""How a script runs: what the user can mend becomes one sentence, Ctrl-C and SIGTERM one line."""

import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable


class InputError(Exception):
    """Something that the user gave is wrong; the message says what, where and what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a script's `main`; what the user can mend becomes one sentence on stderr.

    Exit code 1 for an `InputError`, a failing disk and lack of memory; for an interruption that of
    a shell, 128 + the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 141 where what reads
    the output has ended.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except InputError as error:
        _close_progress_bars(error)
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interruption:
        _close_progress_bars(interruption)
        _ignore_interruptions()
        print(
            "interrupted: what is complete is kept; start the same command again, without "
            "--overwrite, and it goes on from there",
            file=sys.stderr,
        )
        sys.exit(128 + int((interruption.args or (signal.SIGINT,))[0]))
    except OSError as error:
        _close_progress_bars(error)
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            sys.exit(128 + signal.SIGPIPE)
        named = f"{error.filename}: " if error.filename else ""
        sys.exit(
            f"error: {named}{error.strerror or error}; check that name, its disk and your rights, "
            "then start the same command again"
        )
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError on a GPU; on a CPU torch has no class of its own
        words = f"{type(error).__name__} {error}"
        if not re.search("MemoryError|not enough memory|can't allocate memory", words):
            raise
        _close_progress_bars(error)
        sys.exit(
            "error: the memory is full; give a smaller batch (--batch_size, --adapters_per_batch) "
            "or a smaller --max_length, or use a larger machine, and start again"
        )
    else:
        _ignore_interruptions()


def _reader_has_gone() -> bool:
    """Whether what read the standard output has ended, as `head` does; what follows is dropped."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = any(events & select.POLLERR for _, events in output.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
    return gone


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
