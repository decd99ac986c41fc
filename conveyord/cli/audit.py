"""`audit`: whether a table or a directory holds what its fence says, counted from its files."""

from __future__ import annotations

import os
from pathlib import Path

import click

from conveyord.cli.exits import EXIT_FAILED, print_json, reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option


@click.command()
@click.argument("target", metavar="TABLE_OR_PATH")
@data_dir_option
@config_option
@click.option("--catalog", default="lake", show_default=True, help="The Iceberg catalog that the table is in.")
@click.option("--deep", is_flag=True, help="Read every page of every column and verify its checksum.")
@output_option("text", "json")
@reports_failures
def audit(target: str, data_dir: Path | None, config_path: Path | None, catalog: str, deep: bool, output: str) -> int:
    """Check that a table (NAMESPACE.TABLE) or a directory holds every record exactly once.

    Rows are counted by reading one column of the table's Parquet files, all with --deep. With the columns
    _source, _partition and _offset (provenance: true on the sink) every record is checked, otherwise the
    number of rows. Exit code 1 means that something is missing, doubled, damaged, or cannot be vouched for.

    What has a slash in it is a path: the directory of a sink parquet_dir or file_jsonl, or its one file, such as
    ./out. Its files are read whole, and held against the newest manifests beside them. Audit it while no run writes
    there.
    """
    if os.sep in target:
        from conveyord.storage.directory_audit import audit_directory

        report = audit_directory(Path(target))
    else:
        from conveyord.storage.lake.audit import audit_table
        from conveyord.storage.lake.reading import open_to_read

        setting = load_setting(config_path, data_dir)
        opened = open_to_read(catalog, data_dir=setting.data_dir, catalogs=setting.config.resolved_catalogs())
        report = audit_table(opened.named_table(target), name=target, deep=deep)
    if output == "json":
        print_json(report.as_json())
    else:
        click.echo(report.as_text())
    return 0 if report.ok else EXIT_FAILED
