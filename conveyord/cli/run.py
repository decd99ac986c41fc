"""`conveyord run`: one pipeline in this process, with live progress and a final summary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from conveyord.cli.exits import EXIT_CONFIG, EXIT_FAILED, print_json, reports_failures
from conveyord.cli.options import Setting, config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from conveyord.core.pipeline.manifest import PipelineSpec
    from conveyord.engine.local_run import RunRequest
    from conveyord.engine.summary import RunSummary

CHANNEL_CAPACITY_MAX = 1024  # as in conveyord.toml, where the reason stands
THREADS_MAX = 256


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
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
@click.option("--adopt", metavar="NAMESPACE/NAME", help="The pipeline's former name, whose positions are taken over.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@output_option("text", "json")
@reports_failures
def run(
    file: Path,
    data_dir: Path | None,
    config_path: Path | None,
    channel_capacity: int | None,
    threads: int | None,
    skip_bad: bool,
    adopt: str | None,
    log_level: str | None,
    log_format: str | None,
    output: str,
) -> int:
    """Run the pipeline of FILE until its sources end.

    The first Ctrl-C or SIGTERM stops reading and commits what was read; the second stops at once, and
    the third does not wait for anything. Whatever happens, the same command goes on where the table says.

    \b
    Exit codes: 0 at the end or after stopping in order, 1 if it failed,
    2 if the definition or a setting is wrong, 130 or 143 if it was stopped at once.
    """
    from conveyord.cli.logs import configure_logs
    from conveyord.engine.local_run import RunRequest

    if adopt is not None and adopt.count("/") != 1:
        raise click.UsageError(f"--adopt takes NAMESPACE/NAME, such as default/{adopt.strip('/') or 'quakes'}")
    setting = load_setting(config_path, data_dir)
    settings = setting.config
    pipeline = _one_pipeline(file)
    prints_rows = pipeline.sink.type == "stdout_pretty"
    if prints_rows and output == "json":
        raise click.UsageError("-o json and the sink stdout_pretty both write to standard output; use -o text")
    form = log_format or settings.log.format
    configure_logs(level=log_level or settings.log.level, form=form)
    request = RunRequest(
        pipeline=pipeline,
        data_dir=setting.data_dir,
        channel_capacity=channel_capacity or settings.run.channel_capacity,
        threads=threads or settings.thread_count(),
        skip_bad=skip_bad,
        adopt_from=adopt,
        catalogs=settings.resolved_catalogs(),
    )
    summary, signal_number = _run(request, live_allowed=form == "text" and not prints_rows)
    if output == "json":
        print_json(summary.as_json())
    else:
        from conveyord.cli.display import summary_text

        click.echo(summary_text(summary, hints=_hints(pipeline, setting, config_path)), err=prints_rows)
    if summary.error is not None:
        stage = f"stage {summary.error.stage}: " if summary.error.stage else ""
        click.echo(f"error: {stage}{summary.error.message}", err=True)
    return _exit_code(summary, signal_number)


def _one_pipeline(file: Path) -> PipelineSpec:
    from conveyord.core.errors import ConfigError
    from conveyord.engine.definitions import load_pipelines

    pipelines = load_pipelines(file)
    if len(pipelines) > 1:
        names = ", ".join(pipeline.identity for pipeline in pipelines)
        raise ConfigError(f"{file} holds {len(pipelines)} pipelines ({names}); conveyord run takes a file with one")
    return pipelines[0]


def _run(request: RunRequest, *, live_allowed: bool) -> tuple[RunSummary, int | None]:
    """The summary, and the signal that cut the run short, if one did."""
    import trio

    from conveyord.cli.display import make_display
    from conveyord.cli.run_shell import supervised_run

    display = make_display(request.pipeline.identity, live_allowed=live_allowed)
    return trio.run(supervised_run, request, display)


def _exit_code(summary: RunSummary, signal_number: int | None) -> int:
    if summary.status == "cancelled" and signal_number is not None:
        return 128 + signal_number
    if summary.error is not None:
        return EXIT_CONFIG if summary.error.code == "CONFIG" else EXIT_FAILED
    return 0


def _hints(pipeline: PipelineSpec, setting: Setting, config_path: Path | None) -> list[tuple[str, str]]:
    """Where the result lies and what to try next, as pairs of label and text."""
    import shlex

    table, catalog = pipeline.sink.options.get("table"), pipeline.sink.options.get("catalog", "lake")
    if pipeline.sink.type != "iceberg" or not isinstance(catalog, str):
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
    names = ".".join(part if part.isidentifier() else f'"{part}"' for part in str(table).split("."))
    query = shlex.quote(f"SELECT * FROM {names} LIMIT 10")  # noqa: S608 - shown, never run
    return [
        ("table", place),
        ("look", f"conveyord query {query}{flags}"),
        ("check", f"conveyord audit {table}{flags}"),
    ]
