"""`test`: the tests that pipelines carry with them."""

from __future__ import annotations

import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import EXIT_TESTS_FAILED, print_json, reports_failures
from conveyord.cli.options import GivenPath, output_option

if TYPE_CHECKING:
    from conveyord.core.pipeline.graph import Pipeline, PipelineTest
    from conveyord.engine.testing import OutputVerdict, Verdict


THREADS = 1  # given rows are few: a second thread would only cost its start
NAMES_SHOWN_MAX = 10  # of tests, where none has the name that was asked for


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=GivenPath())
@click.option(
    "--name",
    "pattern",
    metavar="PATTERN",
    help="Only tests with this in `NAMESPACE/PIPELINE: TEST`, whatever the case; * and ? stand for anything.",
)
@output_option("text", "json")
@reports_failures
def test(paths: tuple[Path, ...], pattern: str | None, output: str) -> int:
    """Run the `tests:` of the pipelines in files and directories.

    The stages are the real ones. Sources and sinks are not: rows come from the test, and end with it. No
    file, table or service is touched. docs/testing.md says how rows are given, expected and compared.

    \b
    Exit codes: 0 all passed, or there are none; 1 a bug in an operator;
    2 a definition or the command line is wrong; 3 a test failed.
    """
    import trio

    from conveyord.cli.logs import configure_logs
    from conveyord.core.units import counted
    from conveyord.engine.definitions import load_set
    from conveyord.engine.registry import installed
    from conveyord.engine.testing import run_tests

    started = time.monotonic()
    configure_logs(level="error", form="text")
    pipelines = load_set(paths).pipelines
    known = [(pipeline, one) for pipeline in pipelines for one in pipeline.tests]
    chosen = [each for each in known if pattern is None or _matches(pattern, *each)]
    if known and not chosen:
        raise click.UsageError(_no_such(pattern or "", known))

    async def work() -> list[Verdict]:
        return await run_tests(chosen, installed(), threads=THREADS)

    verdicts = trio.run(work)
    failed = sum(not verdict.passed for verdict in verdicts)
    if output == "json":
        print_json({"passed": len(verdicts) - failed, "failed": failed, "tests": [_as_json(one) for one in verdicts]})
    elif not verdicts:
        click.echo(f"no tests in {counted(len(pipelines), 'pipeline')}; a pipeline holds them under 'tests'")
    else:
        from conveyord.cli.verdicts import report

        click.echo(report(verdicts, colour=sys.stdout.isatty()), nl=False)
        click.echo(f"{counted(len(verdicts), 'test')} in {time.monotonic() - started:.2f} s", err=True)
    return EXIT_TESTS_FAILED if failed else 0


def _full_name(pipeline: Pipeline, one: PipelineTest) -> str:
    return f"{pipeline.identity}: {one.name}"


def _matches(pattern: str, pipeline: Pipeline, one: PipelineTest) -> bool:
    return fnmatchcase(_full_name(pipeline, one).casefold(), f"*{pattern.casefold()}*")


def _no_such(pattern: str, known: list[tuple[Pipeline, PipelineTest]]) -> str:
    names = [repr(_full_name(*each)) for each in known[:NAMES_SHOWN_MAX]]
    more = f" and {len(known) - NAMES_SHOWN_MAX} more" if len(known) > NAMES_SHOWN_MAX else ""
    return f"no test has {pattern!r} in its name; there are {', '.join(names)}{more}"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    error = None if verdict.error is None else {"code": verdict.code, "message": verdict.error}
    return {
        "pipeline": verdict.pipeline,
        "name": verdict.test,
        "status": "passed" if verdict.passed else "failed",
        "seconds": round(verdict.seconds, 6),
        "error": error,
        "outputs": [_output_as_json(output) for output in verdict.outputs],
    }


def _output_as_json(output: OutputVerdict) -> dict[str, Any]:
    return {
        "output": output.output,
        "passed": output.passed,
        "rows_expected": len(output.expected),
        "rows_got": len(output.got),
        "differences": [
            {
                "kind": one.kind,
                "row_expected": None if one.expected is None else one.expected + 1,
                "row_got": None if one.got is None else one.got + 1,
                "expected": None if one.expected is None else output.expected[one.expected],
                "got": None if one.got is None else output.got[one.got],
                "columns": one.columns,
            }
            for one in output.differences
        ],
        "notes": output.notes,
    }
