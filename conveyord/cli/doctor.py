"""`conveyord doctor`: whether a node can run here, and what would trouble it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import EXIT_FAILED, print_json, reports_failures
from conveyord.cli.node_options import cluster_options, flags_of, place_options
from conveyord.cli.options import output_option

if TYPE_CHECKING:
    from conveyord.daemon.doctor.findings import Finding

MARKS = {"ok": "ok", "info": "info", "warning": "WARNING", "wrong": "WRONG"}
COLOURS = {"ok": "green", "info": "blue", "warning": "yellow", "wrong": "red"}


@click.command()
@place_options
@cluster_options
@output_option("table", "json")
@reports_failures
def doctor(config_path: Path | None, output: str, **given: Any) -> int:
    """Look at all that a node with these settings needs, and say what to mend.

    Packages, limits of the machine, the data directory and how fast it syncs, ports, certificates, and what the nodes
    answer that this one is to join. Nothing is started or changed, and a node may run meanwhile. The options are those
    of `conveyord start`.

    \b
    Exit codes: 0 if a node can run, warnings or not; 1 if something is wrong; 2 if a setting is.
    """
    import os

    import trio

    from conveyord.cli.logs import configure_logs
    from conveyord.config import load_node_config
    from conveyord.daemon.built import check_roles
    from conveyord.daemon.doctor.checks import examine

    config = load_node_config(config_path, flags_of(given))
    check_roles(config.node.roles)
    configure_logs(level="error", form=config.log.format)  # what is found is told below
    findings = trio.run(examine, config, os.environ)
    is_wrong = any(one.verdict == "wrong" for one in findings)
    if output == "json":
        print_json({"ok": not is_wrong, "findings": [_as_json(one) for one in findings]})
    else:
        for line in _lines(findings):
            click.echo(line)
    return EXIT_FAILED if is_wrong else 0


def _as_json(one: Finding) -> dict[str, str]:
    return {"check": one.check, "verdict": one.verdict, "found": one.found, "remedy": one.remedy}


def _lines(findings: list[Finding]) -> list[str]:
    width = max(len(one.check) for one in findings)
    lines = []
    for one in findings:
        mark = click.style(f"{MARKS[one.verdict]:<8}", fg=COLOURS[one.verdict])
        lines.append(f"{mark} {one.check:<{width}}  {one.found}")
        if one.remedy:
            lines.append(f"{'':8} {'':{width}}  -> {one.remedy}")
    return lines
