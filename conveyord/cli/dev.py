"""`conveyord dev`: one node with every role that there is, for one machine and no cluster."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import reports_failures
from conveyord.cli.node_options import flags_of, place_options

if TYPE_CHECKING:
    from conveyord.config.loading import Flags
    from conveyord.daemon.serving import Serving


@click.command()
@place_options
@reports_failures
def dev(config_path: Path | None, **given: Any) -> int:
    """Start one node with every role that there is, on this machine alone and open to everyone on it.

    Nothing needs to be set up. Settings are those of the file, but for what makes a node of a cluster: listening off
    127.0.0.1, certificates, joining and tokens are left out. If a port is taken the node does not start, and says
    what to do.

    \b
    Exit codes: as of `conveyord start`.
    """
    from conveyord.cli.start import run_node
    from conveyord.config import load_node_config

    settings = partial(load_node_config, config_path, {**_fixed(), **flags_of(given)}, is_dev=True)
    config = settings()
    began = time.monotonic()
    return run_node(
        config,
        reread=settings,
        on_answer=lambda serving: _show(serving, time.monotonic() - began),
    )


def _fixed() -> Flags:
    from conveyord.daemon.built import BUILT

    return {
        ("node", "roles"): ("conveyord dev", list(BUILT)),
        ("rpc",): ("conveyord dev", {}),
        ("http",): ("conveyord dev", {"access": "open"}),
        ("cluster",): ("conveyord dev", {}),
    }


def _show(serving: Serving, seconds: float) -> None:
    """The banner, on stdout: logs are on stderr."""
    from conveyord import __version__
    from conveyord.cli.ctl.target import DEFAULT_SERVER

    web = serving.http
    at = "" if web == DEFAULT_SERVER else f" --server {web}"
    lines = (
        ("API", f"{web}/api/v1, open to everyone on this machine"),
        ("try it", f"{web}/docs"),
        ("health", f"{web}/readyz, {web}/metrics"),
        ("RPC", str(serving.rpc)),
        ("data", f"{serving.data_dir}, in SQLite, on disk before it is acknowledged"),
        ("roles", ", ".join(serving.roles)),
        ("look", f"conveyorctl status{at}"),
    )
    click.echo(f"conveyord {__version__}: node {serving.node} is ready after {seconds:.1f} s\n")
    for label, text in lines:
        click.echo(f"  {label:<8} {text}")
    click.echo("\nCtrl-C stops it; the same command starts it again with all that it has.")
