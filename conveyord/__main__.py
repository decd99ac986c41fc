"""Entry points of the two console scripts, and of `python -m conveyord`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `conveyord` and exit with its code."""
    from conveyord.cli.main import conveyord, invoke

    sys.exit(invoke(conveyord, "conveyord"))


def main_ctl() -> None:
    """Run `conveyorctl` and exit with its code."""
    from conveyord.cli.main import conveyorctl, invoke

    sys.exit(invoke(conveyorctl, "conveyorctl"))


if __name__ == "__main__":
    main()
