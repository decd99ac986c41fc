"""`conveyord schema`: the JSON Schema of definition files, for editors."""

from __future__ import annotations

import click

from conveyord.cli.exits import reports_failures


@click.command()
@reports_failures
def schema() -> int:
    """Print the JSON Schema (2020-12) of definition files, with every operator that is installed.

    Editors complete and check definitions with it: docs/editors.md says how.

    \b
      conveyord schema > conveyord.schema.json
    """
    import json

    from conveyord.engine.json_schema import definition_schema
    from conveyord.engine.registry import installed

    click.echo(json.dumps(definition_schema(installed()), indent=2, ensure_ascii=False))
    return 0
