"""Calls `conveyorctl` as its script does: in this process, which saves its start, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from conveyord.cli.main import conveyorctl, invoke

CONVEYORCTL = Path(sys.executable).with_name("conveyorctl")
SECONDS_MAX = 60.0  # a call that takes longer hangs
VARIABLES = (
    "CONVEYORD_SERVER",
    "CONVEYORD_TOKEN",
    "CONVEYORD_CONTEXT",
    "CONVEYORD_CONTEXTS",
    "CONVEYORD_DEBUG",
    "PYTHONUNBUFFERED",
)


class Said(NamedTuple):
    """How a call ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def sentence(self) -> str:
        """The one sentence of an orderly failure."""
        assert "Traceback" not in self.err, self.err
        assert "bug in conveyord" not in self.err, self.err
        found = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(found) == 1, f"expected one sentence on stderr:\n{self.err}"
        return found[0].removeprefix("error: ")


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a call sees: a home of its own, so that no contexts of who runs the tests are used."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**plain, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **more}


def ctl(home: Path, *arguments: str | Path, stdin: bytes | None = None, **more: str) -> Said:
    """Call it in this process, in the directory `home`, without a terminal."""
    wanted: dict[str, str | None] = dict.fromkeys(VARIABLES)
    wanted |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **more}
    before = Path.cwd()
    os.chdir(home)
    try:
        with CliRunner().isolation(input=stdin or b"", env=wanted) as (out, err, _):
            code = invoke(conveyorctl, "conveyorctl", [str(argument) for argument in arguments])
            sys.stdout.flush()
            return Said(code, out.getvalue(), err.getvalue().decode())
    finally:
        os.chdir(before)


def real(home: Path, *arguments: str | Path, stdin: bytes | None = None, **more: str) -> Said:
    """Call it in a process of its own."""
    ended = subprocess.run(
        [CONVEYORCTL, *map(str, arguments)],
        cwd=home,
        env=environment(home, **more),
        input=stdin or b"",
        capture_output=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    return Said(ended.returncode, ended.stdout, ended.stderr.decode())
