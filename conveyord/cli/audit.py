"""`audit`: whether a table holds what its fence says, counted from its files."""

from __future__ import annotations

from pathlib import Path

import click

from conveyord.cli.exits import EXIT_FAILED, print_json, reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option


@click.command()
@click.argument("table")
@data_dir_option
@config_option
@click.option("--catalog", default="lake", show_default=True, help="The Iceberg catalog that TABLE is in.")
@output_option("text", "json")
@reports_failures
def audit(table: str, data_dir: Path | None, config_path: Path | None, catalog: str, output: str) -> int:
    """Check that TABLE (NAMESPACE.TABLE) holds every record exactly once.

    Rows are counted by reading the table's Parquet files. With the columns _source, _partition and
    _offset (provenance: true on the sink) every record is checked, otherwise the number of rows. Exit
    code 1 means that something is missing, doubled, or cannot be vouched for.
    """
    from conveyord.storage.lake.audit import audit_table
    from conveyord.storage.lake.reading import open_to_read

    setting = load_setting(config_path, data_dir)
    opened = open_to_read(catalog, data_dir=setting.data_dir, catalogs=setting.config.resolved_catalogs())
    report = audit_table(opened.named_table(table), name=table)
    if output == "json":
        print_json(report.as_json())
    else:
        click.echo(report.as_text())
    return 0 if report.ok else EXIT_FAILED
