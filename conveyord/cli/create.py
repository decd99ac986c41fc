"""`conveyord create`: a commented definition to start from."""

from __future__ import annotations

import click

from conveyord.cli.exits import reports_failures


@click.command()
@click.argument("pipeline", metavar="SOURCE/TRANSFORM/SINK")
@click.option("--name", metavar="NAME", help="What the pipeline is called.  [default: my-pipeline]")
@reports_failures
def create(pipeline: str, name: str | None) -> int:
    """Print a definition to start from, with every option explained.

    Several transforms are separated by commas, and there may be none. `conveyord plugins` lists what
    there is.

    \b
      conveyord create file_jsonl/filter,json_flatten/iceberg --name quakes > quakes.yaml
      conveyord create file_csv//stdout_pretty
    """
    from pydantic import TypeAdapter, ValidationError

    from conveyord.core.errors import ConfigError
    from conveyord.core.pipeline.stages import Name
    from conveyord.engine.registry import installed
    from conveyord.engine.starters import NAME, starter

    try:
        checked = TypeAdapter(Name).validate_python(name or NAME)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--name: {reason}") from error
    click.echo(starter(pipeline, installed(), name=checked), nl=False)
    return 0
