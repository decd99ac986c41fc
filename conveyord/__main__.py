"""Entry points of the two console scripts, and of `python -m conveyord`."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

# Imports make half a million objects that live for ever. Looking through them for garbage again and
# again takes a tenth of the start-up; the threshold of 700 is meant for programs that make cycles.
GC_THRESHOLDS = (100_000, 50, 1_000)
EXIT_INTERRUPTED = 130  # of cli/exits.py, which may not be imported yet


def main() -> None:
    """Run `conveyord` and exit with its code."""
    gc.set_threshold(*GC_THRESHOLDS)
    _leave(_invoked("conveyord"))


def main_ctl() -> None:
    """Run `conveyorctl` and exit with its code."""
    _leave(_invoked("conveyorctl"))


def _invoked(name: str) -> int:
    """The exit code of a console script. A Ctrl-C while it is imported ends it as quietly as any later one."""
    try:
        from conveyord.cli.main import conveyorctl, conveyord, invoke

        return invoke({"conveyord": conveyord, "conveyorctl": conveyorctl}[name], name)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _leave(code: int) -> NoReturn:
    """End the process at once. Everything that matters is closed by then; mypy leaves the same way.

    Python would first take a sixth of a second to free, one by one, objects that end with the process.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone, or it is closed: there is no one to tell
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
