"""`conveyord check-config`: whether settings are right, and what is in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import print_json, reports_failures
from conveyord.cli.options import GivenPath, output_option

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 28  # of a key


@click.command("check-config")
@click.argument("file", type=GivenPath(dir_okay=False), required=False)
@output_option("text", "json")
@reports_failures
def check_config(file: Path | None, output: str) -> None:
    """Check the settings of FILE (by default ./conveyord.toml, if there is one) and print what is in force.

    Nothing is started, and secrets are not shown. `conveyord doctor` looks at the machine as well.

    \b
    Exit codes: 0 if a node can be started with them, 2 if not; every mistake is told with its line.
    """
    from conveyord.config import load_node_config
    from conveyord.daemon.built import check_roles

    config = load_node_config(file, {})
    check_roles(config.node.roles)
    config.resolved_secret()
    config.resolved_backup()
    config.resolved_catalogs()
    shown = config.model_dump(mode="json")
    if output == "json":
        print_json(shown)
        return
    for key, value in _flat(shown):
        click.echo(f"{key:<{WIDTH}} = {value}")


def _flat(settings: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Keys with their tables, and values as TOML has them."""
    import json

    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, json.dumps(value, ensure_ascii=False)
