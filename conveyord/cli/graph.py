"""`graph`: pipelines as a picture, with what they share when they run together."""

from __future__ import annotations

from pathlib import Path

import click

from conveyord.cli.exits import reports_failures
from conveyord.cli.options import GivenPath

FORMATS = ("ascii", "dot", "mermaid", "svg")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=GivenPath())
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default=FORMATS[0], show_default=True, help="What to draw it as."
)
@click.option("--no-share", is_flag=True, help="Draw every pipeline by itself, as if it ran alone.")
@reports_failures
def graph(paths: tuple[Path, ...], form: str, no_share: bool) -> int:
    """Draw the pipelines of PATHS (files and directories) on stdout.

    Stages that several pipelines share when they run together are drawn once, with the names of those
    pipelines. Options are not shown, so that a picture holds no secrets; conditions are.
    """
    from conveyord.core.pipeline.drawing.formats import FORMATS as DRAWINGS
    from conveyord.core.pipeline.optimiser import share
    from conveyord.engine.definitions import load_pipelines
    from conveyord.engine.plan import share_salt
    from conveyord.engine.registry import installed

    pipelines = load_pipelines(paths)
    salt = share_salt(installed())
    # A disabled pipeline takes part in no run, so there is nothing that it could share.
    plan = share(pipelines, lambda each, stage: salt(each, stage) if each.enabled and not no_share else None)
    click.echo(DRAWINGS[form](plan), nl=False)
    for pipeline in pipelines:
        if not pipeline.enabled:
            click.echo(f"note: {pipeline.identity} is disabled; conveyord run skips it", err=True)
    return 0
