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


def main() -> None:
    """Run `conveyord` and exit with its code."""
    gc.set_threshold(*GC_THRESHOLDS)
    from conveyord.cli.main import conveyord, invoke

    _leave(invoke(conveyord, "conveyord"))


def main_ctl() -> None:
    """Run `conveyorctl` and exit with its code."""
    from conveyord.cli.main import conveyorctl, invoke

    _leave(invoke(conveyorctl, "conveyorctl"))


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
