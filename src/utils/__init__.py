"""Ctrl-C while the libraries are imported, before `run_stage`, is one line as well."""

import sys

_shown_before = sys.excepthook


def _show(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: nothing was begun yet; start the same command again", file=sys.stderr)
    else:
        _shown_before(kind, error, trace)


sys.excepthook = _show
