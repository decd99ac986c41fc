"""`buffer`: what slow branches have put on disk, and bringing it into order."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import EXIT_FAILED, print_json, reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from conveyord.storage.spill.inspection import Inspection, QueueReport
    from conveyord.storage.spill.recovery import Recovery

SPANS_SHOWN = 20  # partitions of a queue shown to people; -o json has all


@click.group()
def buffer() -> None:
    """Look into what slow branches (`on_slow: spill`) have put on disk."""


@buffer.command("ls")
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def ls(data_dir: Path | None, config_path: Path | None, output: str) -> int:
    """List all buffers: frames that wait, bytes, age, health.

    Health is judged by the headers of the frames; inspect checks every byte. A buffer in use may look
    torn for a moment. Exit code 1 means that one is damaged.
    """
    from conveyord.storage.spill.inspection import find_queues, report

    setting = load_setting(config_path, data_dir)
    reports = [report(name, now_seconds=time.time()) for name in find_queues(setting.data_dir)]
    if output == "json":
        print_json([asdict(each) for each in reports])
    elif reports:
        _print_reports(reports)
    else:
        click.echo(f"no buffers in {setting.data_dir}")
    return EXIT_FAILED if any(each.health == "damaged" for each in reports) else 0


@buffer.command("inspect")
@click.argument("name", metavar="PIPELINE/EDGE")
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def inspect(name: str, data_dir: Path | None, config_path: Path | None, output: str) -> int:
    """Check every byte of one buffer, named as ls prints it.

    Shows its segments, what its frames cover of each source, and the first bad byte. Nothing is
    changed. Exit code 1 means that it is damaged.
    """
    from conveyord.storage.spill import inspection

    setting = load_setting(config_path, data_dir)
    (queue,) = inspection.find_queues(setting.data_dir, name)
    found = inspection.inspect(queue)
    if output == "json":
        print_json({"pipeline": queue.pipeline, "edge": queue.edge, **found.as_json()})
    else:
        click.echo(f"{queue}  ({queue.directory})")
        _print_inspection(found)
    return EXIT_FAILED if found.fault and found.fault.verdict != "torn" else 0


@buffer.command("repair")
@click.argument("name", metavar="[PIPELINE/EDGE]", required=False)
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def repair(name: str | None, data_dir: Path | None, config_path: Path | None, output: str) -> None:
    """Bring one buffer, or all, into order, as the next run would.

    Keeps the frames before the first damage and moves what follows to the buffer's quarantine: its rows
    are read from the source again. Refused while a pipeline runs in the data directory.
    """
    from conveyord.storage.locks import owned
    from conveyord.storage.spill.inspection import find_queues
    from conveyord.storage.spill.recovery import repair

    setting = load_setting(config_path, data_dir)
    if not find_queues(setting.data_dir, name):
        print_json([]) if output == "json" else click.echo(f"no buffers in {setting.data_dir}")
        return
    with owned(setting.data_dir):
        done = [(queue, repair(queue.directory)) for queue in find_queues(setting.data_dir, name)]
    if output == "json":
        print_json([{"pipeline": queue.pipeline, "edge": queue.edge, **_as_json(made)} for queue, made in done])
        return
    for queue, made in done:
        _print_recovery(str(queue), made)


def _print_reports(reports: list[QueueReport]) -> None:
    import pyarrow as pa

    from conveyord.cli.tables import write_table
    from conveyord.core.units import format_bytes, format_seconds

    names = ["buffer", "frames", "bytes", "age", "health", "quarantine"]
    schema = pa.schema([(name, pa.int64() if name == "frames" else pa.string()) for name in names])
    rows: list[list[Any]] = [
        [
            f"{each.pipeline}/{each.edge}",
            each.frames,
            format_bytes(each.bytes),
            "" if each.age_seconds is None else format_seconds(each.age_seconds),
            each.health,
            format_bytes(each.quarantined_bytes) if each.quarantined_files else "",
        ]
        for each in reports
    ]
    write_table(sys.stdout, schema, rows)


def _print_inspection(found: Inspection) -> None:
    from conveyord.core.units import format_bytes

    click.echo(f"{found.last - found.settled} frames wait; settled up to {found.settled}, last {found.last}")
    if not found.has_ledger:
        click.echo("the ledger is missing or damaged: everything that is here will be read")
    for segment in found.segments:
        frames = f"frames {segment.first} to {segment.last}" if segment.last >= segment.first else "no frames"
        click.echo(f"  {segment.path.name}  {format_bytes(segment.size):>9}  {segment.verdict:8}  {frames}")
    for span in found.spans[:SPANS_SHOWN]:
        click.echo(f"  {span.partition.source}: {span.partition.name} [{span.first}, {span.end})")
    if len(found.spans) > SPANS_SHOWN:
        click.echo(f"  and {len(found.spans) - SPANS_SHOWN} more spans; -o json has all")
    for path, size in found.quarantined:
        click.echo(f"  in quarantine: {path}  {format_bytes(size)}")
    if found.fault:
        click.echo(f"first bad byte: {found.fault.path.name}, byte {found.fault.end}: {found.fault.reason}")


def _as_json(made: Recovery) -> dict[str, Any]:
    return asdict(made) | {
        "quarantined": [asdict(each) | {"kept": each.kept and str(each.kept)} for each in made.quarantined]
    }


def _print_recovery(name: str, made: Recovery) -> None:
    from conveyord.core.units import format_bytes

    torn = f", cut {format_bytes(made.torn_bytes)} of a write that was not finished" if made.torn_bytes else ""
    click.echo(f"{name}: {made.frames} frames kept{torn}")
    for each in made.quarantined:
        where = f"moved to {each.kept}" if each.kept else "deleted, the quarantine had no room"
        click.echo(f"  {each.segment}, from byte {each.offset}: {each.reason}; {format_bytes(each.bytes)} {where}")
    if made.expired:
        click.echo(f"  {made.expired} older files of the quarantine were deleted to make room")
