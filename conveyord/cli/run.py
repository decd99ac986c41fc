"""`conveyord run`: pipelines in this process, with live progress and a final summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from conveyord.cli.exits import EXIT_CONFIG, EXIT_FAILED, exit_code_of, print_json, reports_failures
from conveyord.cli.options import GivenPath, Setting, config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conveyord.config import Address
    from conveyord.core.pipeline.graph import Pipeline
    from conveyord.engine.local_run import RunRequest
    from conveyord.engine.summary import RunSummary

CHANNEL_CAPACITY_MAX = 1024  # as in conveyord.toml, where the reason stands
THREADS_MAX = 256
PORT_MAX = 65535


@click.command()
@click.argument("paths", type=GivenPath(), nargs=-1, required=True)
@data_dir_option
@config_option
@click.option(
    "--channel-capacity",
    type=click.IntRange(1, CHANNEL_CAPACITY_MAX),
    metavar="BATCHES",
    help="Batches that may wait between two stages.  [default: 8]",
)
@click.option(
    "--threads",
    type=click.IntRange(1, THREADS_MAX),
    metavar="N",
    help="Threads for CPU-bound work.  [default: one per core]",
)
@click.option("--skip-bad", is_flag=True, help="Pass over bad records, counted and logged, instead of stopping.")
@click.option("--dry-run", is_flag=True, help="Connect to everything and say what is wrong; move nothing.")
@click.option("--adopt", metavar="NAMESPACE/NAME", help="The pipeline's former name, whose positions are taken over.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, PORT_MAX),
    metavar="PORT",
    help="Serve metrics for Prometheus here, at /metrics, on 127.0.0.1 unless the settings say another host. "
    "0: a free port, which is logged.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@output_option("text", "json")
@reports_failures
def run(
    paths: tuple[Path, ...],
    data_dir: Path | None,
    config_path: Path | None,
    channel_capacity: int | None,
    threads: int | None,
    skip_bad: bool,
    dry_run: bool,
    adopt: str | None,
    metrics_port: int | None,
    log_level: str | None,
    log_format: str | None,
    output: str,
) -> int:
    """Run the pipelines of PATHS, files or directories, until their sources end.

    Pipelines that run together read what they have in common once. The first Ctrl-C or SIGTERM stops
    reading and commits what was read; the second stops at once, and the third does not wait for anything.
    Whatever happens, the same command goes on where the tables say.

    \b
    Exit codes: 0 at the end or after stopping in order, 1 if one failed,
    2 if a definition or a setting is wrong, 130 or 143 if it was stopped at once.
    """
    from conveyord.cli.logs import configure_logs

    if dry_run and adopt is not None:
        raise click.UsageError("--dry-run moves nothing, and --adopt takes positions over; give one of them")
    if adopt is not None and adopt.count("/") != 1:
        raise click.UsageError(f"--adopt takes NAMESPACE/NAME, such as default/{adopt.strip('/') or 'quakes'}")
    setting = load_setting(config_path, data_dir)
    settings = setting.config
    pipelines = _enabled(paths)
    if adopt is not None and len(pipelines) > 1:
        raise click.UsageError("--adopt is for one pipeline; run that one by itself")
    prints_rows = any(sink.type == "stdout_pretty" for pipeline in pipelines for sink in pipeline.of_kind("sink"))
    if prints_rows and output == "json" and not dry_run:
        raise click.UsageError("-o json and the sink stdout_pretty both write to standard output; use -o text")
    form = log_format or settings.log.format
    configure_logs(level=log_level or settings.log.level, form=form)
    request = request_for(
        pipelines, setting, channel_capacity=channel_capacity, threads=threads, skip_bad=skip_bad, adopt=adopt
    )
    if dry_run:
        return _dry_run(request, output)
    live_allowed, metrics = form == "text" and not prints_rows, settings.run.metrics_address(metrics_port)
    summaries, signal_number = _run(request, live_allowed=live_allowed, metrics=metrics)
    if output == "json":
        shapes = [summary.as_json() for summary in summaries]
        print_json(shapes[0] if len(shapes) == 1 else shapes)
    else:
        from conveyord.cli.display import summary_text
        from conveyord.cli.hints import hints

        for pipeline, summary in zip(pipelines, summaries, strict=True):
            click.echo(summary_text(summary, hints=hints(pipeline, setting, config_path)), err=prints_rows)
    for summary in summaries:
        if summary.error is not None:
            which = f"{summary.pipeline}: " if len(summaries) > 1 else ""
            stage = f"stage {summary.error.stage}: " if summary.error.stage else ""
            click.echo(f"error: {which}{stage}{summary.error.message}", err=True)
    return _exit_code(summaries, signal_number)


def request_for(
    pipelines: Sequence[Pipeline],
    setting: Setting,
    *,
    channel_capacity: int | None = None,
    threads: int | None = None,
    skip_bad: bool = False,
    adopt: str | None = None,
) -> RunRequest:
    """A run of `pipelines` under the settings, some of which the command line overrides."""
    from conveyord.engine.local_run import RunRequest
    from conveyord.engine.preparation import Limits

    settings = setting.config
    return RunRequest(
        pipelines=tuple(pipelines),
        data_dir=setting.data_dir,
        channel_capacity=channel_capacity or settings.run.channel_capacity,
        threads=threads or settings.thread_count(),
        limits=Limits(
            dead_letter_bytes=settings.dead_letters.budget,
            dead_letter_seconds=settings.dead_letters.retention,
            spill_bytes=settings.spill.budget,
        ),
        skip_bad=skip_bad,
        adopt_from=adopt,
        catalogs=settings.resolved_catalogs(),
    )


def _enabled(paths: Sequence[Path]) -> list[Pipeline]:
    """The pipelines of `paths` that are meant to run."""
    from conveyord.core.errors import ConfigError
    from conveyord.engine.definitions import load_pipelines

    pipelines = load_pipelines(paths)
    for pipeline in pipelines:
        if not pipeline.enabled:
            click.echo(f"{pipeline.identity} is not enabled and stays out", err=True)
    enabled = [pipeline for pipeline in pipelines if pipeline.enabled]
    if not enabled:
        names = " ".join(str(path) for path in paths)
        raise ConfigError(f"{names}: there is no pipeline to run; a definition of kind Pipeline is needed")
    return enabled


def _dry_run(request: RunRequest, output: str) -> int:
    import trio

    from conveyord.engine.local_run import check_pipelines
    from conveyord.engine.registry import installed

    identities = [pipeline.identity for pipeline in request.pipelines]
    wrong = trio.run(check_pipelines, request, installed())
    if output == "json":
        found = [{"stage": stage, "code": error.code, "message": str(error)} for stage, error in wrong]
        print_json({"pipelines": identities, "ok": not wrong, "problems": found})
    else:
        for identity in identities:
            click.echo(f"{identity}: {'not ready' if wrong else 'ready'}; nothing was moved")
    for stage, error in wrong:
        click.echo(f"error: stage {stage}: {error}", err=True)
    return max((exit_code_of(error) for _, error in wrong), default=0)


def _run(
    request: RunRequest, *, live_allowed: bool, metrics: Address | None
) -> tuple[tuple[RunSummary, ...], int | None]:
    """The summaries, and the signal that cut the run short, if one did."""
    import trio

    from conveyord.cli.display import make_display
    from conveyord.cli.run_shell import supervised_run

    identities = [pipeline.identity for pipeline in request.pipelines]
    name = identities[0] if len(identities) == 1 else f"{len(identities)} pipelines"
    return trio.run(supervised_run, request, make_display(name, live_allowed=live_allowed), metrics)


def _exit_code(summaries: Sequence[RunSummary], signal_number: int | None) -> int:
    if signal_number is not None and any(summary.status == "cancelled" for summary in summaries):
        return 128 + signal_number
    codes = [summary.error.code for summary in summaries if summary.error is not None]
    if not codes:
        return 0
    return EXIT_CONFIG if all(code == "CONFIG" for code in codes) else EXIT_FAILED
