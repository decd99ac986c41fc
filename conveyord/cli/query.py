"""`query`: read-only SQL over the tables of a catalog."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from conveyord.cli.exits import EXIT_FAILED, report_error, reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option

TABLE_ROWS_MAX = 1000  # rows of a table for people; -o json and csv stream without a limit


@click.command()
@click.argument("sql")
@data_dir_option
@config_option
@click.option("--catalog", default="lake", show_default=True, help="The Iceberg catalog whose tables are named.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help=f"At most so many rows.  [default: {TABLE_ROWS_MAX} for a table, none for json and csv]",
)
@output_option("table", "json", "csv")
@reports_failures
def query(
    sql: str, data_dir: Path | None, config_path: Path | None, catalog: str, limit: int | None, output: str
) -> int:
    """Run one SELECT over tables named NAMESPACE.TABLE.

    Names are case-sensitive. Nothing can be changed; a pipeline may run meanwhile. `SHOW TABLES` lists
    what there is, `EXPLAIN SELECT ...` shows the plan, and NAMESPACE.TABLE$schemas is the history of a
    table's schema. Sorting, grouping and joining take at most 1 GiB of memory; docs/sql.md has the limits.
    """
    from conveyord.cli.tables import rows_of, write_csv, write_json, write_table
    from conveyord.core.errors import ConfigError, ConveyordError
    from conveyord.core.units import counted
    from conveyord.engine.query import run_query
    from conveyord.storage.lake.reading import open_to_read

    setting = load_setting(config_path, data_dir)
    started = time.monotonic()
    opened = open_to_read(catalog, data_dir=setting.data_dir, catalogs=setting.config.resolved_catalogs())
    # One row more than is shown tells whether there are more.
    wanted = limit or (TABLE_ROWS_MAX + 1 if output == "table" else None)
    result = run_query(sql, opened, limit=wanted)
    names = result.schema.names
    rows = (row for batch in result.batches for row in rows_of(batch))
    if output == "table":
        shown = list(rows)
        cut = limit is None and len(shown) > TABLE_ROWS_MAX
        shown = shown[:TABLE_ROWS_MAX] if cut else shown
        write_table(sys.stdout, result.schema, shown)
        count, note = len(shown), " (there are more; use --limit, -o json or -o csv)" if cut else ""
    else:
        if output == "json" and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two columns of the result are named {twice!r}; give one of them another name with AS")
        # The first row is computed before anything is printed, so that most failures leave no half document.
        first = next(rows, None)
        everything = (row for part in (([first] if first is not None else []), rows) for row in part)
        try:
            count = (write_json if output == "json" else write_csv)(sys.stdout, names, everything)
        except ConveyordError as error:  # too late for a JSON error: the list has begun
            report_error(error)
            return EXIT_FAILED
        note = ""
    sys.stdout.flush()
    seconds = time.monotonic() - started
    click.echo(f"{counted(count, 'row')} in {seconds:.2f} s{note}", err=True)
    return 0
