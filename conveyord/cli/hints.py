"""Where what a run wrote lies, and how to look at it: the last lines of a summary for people."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conveyord.cli.options import Setting
    from conveyord.core.pipeline.graph import Pipeline

Hints = list[tuple[str, str]]
"""Pairs of label and text."""

_IN_ORDER = ("iceberg", "iceberg_topics", "parquet_dir", "file_jsonl", "kafka")
"""The types of sinks that there is something to say of; what can be shown with a command comes first."""


def hints(pipeline: Pipeline, setting: Setting, config_path: Path | None) -> Hints:
    """What to say of one of the sinks that take rows: the first of the type that stands first."""
    copies = None if pipeline.dlq is None else pipeline.dlq.sink
    sinks = [sink for sink in pipeline.of_kind("sink") if sink.name != copies and sink.type in _IN_ORDER]
    if not sinks:
        return []
    sink = min(sinks, key=lambda one: _IN_ORDER.index(one.type))
    match sink.type:
        case "kafka":
            return [("topic", f"{sink.options.get('topic')}, at {sink.options.get('brokers')}")]
        case "parquet_dir" | "file_jsonl":
            return _of_files(str(sink.options.get("path")))
        case _:
            return _of_tables(sink.options, setting, config_path)


def _of_files(path: str) -> Hints:
    target = path if os.sep in path else f".{os.sep}{path}"  # without one it would be a table's name
    return [("files", str(Path(path).absolute())), ("check", f"conveyord audit {shlex.quote(target)}")]


def _of_tables(options: Mapping[str, Any], setting: Setting, config_path: Path | None) -> Hints:
    table, catalog = options.get("table"), options.get("catalog", "lake")
    if not isinstance(catalog, str):
        return []
    flags = ""
    if catalog == "lake":
        place = f"{table}, in {(setting.data_dir / 'warehouse').absolute()}"
        if str(setting.data_dir) != "conveyord-data":
            flags += f" --data-dir {shlex.quote(str(setting.data_dir))}"
    else:
        place = f"{table}, in the catalog {catalog!r}"
        flags += f" --catalog {shlex.quote(catalog)}"
    if config_path is not None:
        flags += f" --config {shlex.quote(str(config_path))}"
    if "{topic}" in str(table):
        return [("tables", place), ("look", f"conveyord query 'SHOW TABLES'{flags}")]
    names = ".".join(part if part.isidentifier() else f'"{part}"' for part in str(table).split("."))
    query = shlex.quote(f"SELECT * FROM {names} LIMIT 10")  # noqa: S608 - shown, never run
    return [
        ("table", place),
        ("look", f"conveyord query {query}{flags}"),
        ("check", f"conveyord audit {table}{flags}"),
    ]
