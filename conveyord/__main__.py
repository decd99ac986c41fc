"""Entry points of the two console scripts, and of `python -m conveyord`."""

from __future__ import annotations

import gc
import sys

# Imports make half a million objects that live for ever, and a batch is a handful of large ones: at
# Python's threshold of 700 a tenth of the start-up goes into looking for garbage that is not there.
GC_THRESHOLD_OBJECTS = 50_000


def main() -> None:
    """Run `conveyord` and exit with its code."""
    gc.set_threshold(GC_THRESHOLD_OBJECTS)
    from conveyord.cli.main import conveyord, invoke

    sys.exit(invoke(conveyord, "conveyord"))


def main_ctl() -> None:
    """Run `conveyorctl` and exit with its code."""
    from conveyord.cli.main import conveyorctl, invoke

    sys.exit(invoke(conveyorctl, "conveyorctl"))


if __name__ == "__main__":
    main()
