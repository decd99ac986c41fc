"""`dlq replay`: dead letters once more through the current pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.dlq_selection import find, selection_of, selection_options
from conveyord.cli.exits import exit_code_of, print_json, reports_failures
from conveyord.cli.options import GivenPath, config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    import trio

    from conveyord.engine.replay import ReplayReport


@click.command("replay")
@click.argument("paths", type=GivenPath(), nargs=-1, required=True)
@selection_options
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def replay(
    paths: tuple[Path, ...],
    pipeline: str | None,
    stage: str | None,
    code: str | None,
    ids: tuple[int, ...],
    since: str | None,
    data_dir: Path | None,
    config_path: Path | None,
    output: str,
) -> int:
    """Send dead letters once more through the pipelines of PATHS as they are now.

    Each goes on at the stage where it failed, and reaches only the sinks that lack it. What fails again
    stays a dead letter. Stopped by a signal or killed, the same command goes on, and no row is written
    twice.

    \b
    Exit codes: 0 done, 1 a stage failed, 2 a definition or a setting is wrong.
    """
    import trio

    from conveyord.cli.logs import configure_logs
    from conveyord.cli.run import request_for
    from conveyord.core.errors import ConfigError
    from conveyord.engine.definitions import load_pipelines
    from conveyord.engine.registry import installed
    from conveyord.engine.replay import replay as replay_letters
    from conveyord.storage.dead_letters.reader import DeadLetterReader

    setting = load_setting(config_path, data_dir)
    configure_logs(level=setting.config.log.level, form=setting.config.log.format)
    selection = selection_of(pipeline, stage, code, ids, since)
    pipelines = [one for one in load_pipelines(paths) if selection.pipeline in (None, one.identity)]
    if not pipelines:
        raise click.UsageError(f"no pipeline {selection.pipeline!r} in {', '.join(map(str, paths))}")
    if not setting.data_dir.is_dir():  # owning a directory makes it
        raise ConfigError(f"there is no data directory {setting.data_dir}; give that of the pipelines with --data-dir")
    for letter_id in ids:
        find(setting.data_dir, letter_id)
    request = request_for(pipelines, setting)

    work = partial(replay_letters, request, installed(), selection)
    with DeadLetterReader(setting.data_dir) as reader:
        selected = {
            one.identity: reader.count(dataclasses.replace(selection, pipeline=one.identity)) for one in pipelines
        }
    reports, signal_number = trio.run(_under_signals, work)
    if reports is None:
        click.echo("stopped at once; the same command goes on", err=True)
        return 128 + (signal_number or 0)
    if signal_number is not None:
        click.echo("stopped; the same command goes on", err=True)
    if output == "json":
        print_json([_as_object(report) for report in reports])
    else:
        for report in reports:
            click.echo(_as_text(report) + ("" if selected[report.pipeline] else "; no dead letter is selected"))
    for report in reports:
        if report.error is not None:
            click.echo(f"error: {report.pipeline}: stage {report.stage}: {report.error}", err=True)
    return max((exit_code_of(report.error) for report in reports if report.error is not None), default=0)


async def _under_signals(
    work: Callable[..., Awaitable[list[ReplayReport]]],
) -> tuple[list[ReplayReport] | None, int | None]:
    """`work`, which takes `drain`, and the last signal, if any. No reports if it was cancelled."""
    from conveyord.cli.run_shell import SIGNALS
    from conveyord.runtime.signals import under_signals

    reports: list[ReplayReport] | None = None

    async def reporting(drain: trio.Event) -> None:
        nonlocal reports
        reports = await work(drain=drain)

    signalled = await under_signals(reporting, SIGNALS)
    return reports, signalled.number


def _as_object(report: ReplayReport) -> dict[str, Any]:
    error = report.error
    return {
        "pipeline": report.pipeline,
        "replayed": report.replayed,
        "failed_again": report.failed_again,
        "waiting": report.waiting,
        "absent": dict(report.absent),
        "unusable": report.unusable,
        "held_back": report.held_back,
        "error": None if error is None else {"code": error.code, "message": str(error), "stage": report.stage},
    }


def _as_text(report: ReplayReport) -> str:
    parts = [f"{report.replayed:,} replayed", f"{report.failed_again:,} failed again"]
    if report.waiting:
        parts.append(f"{report.waiting:,} wait until `conveyord run` has passed their records")
    for name, count in sorted(report.absent.items()):
        parts.append(f"{count:,} wait for {name}, which this definition does not have")
    if report.held_back:
        reason = "damaged letters they came from; mend or purge those, `conveyord dlq show` names them"
        parts.append(f"{report.held_back:,} wait for the {reason}")
    if report.unusable:
        parts.append(f"{report.unusable:,} cannot be replayed; `conveyord dlq show` says why")
    return f"{report.pipeline}: {', '.join(parts)}"
