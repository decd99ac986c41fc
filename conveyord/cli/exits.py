"""Exit codes, and how verbs report failures: a sentence for what is expected, a file for what is not."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec

import click

from conveyord import __version__
from conveyord.core.errors import ConfigError, ConveyordError

P = ParamSpec("P")

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_TESTS_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports for a process ended by SIGPIPE


def exit_code_of(error: ConveyordError) -> int:
    """2 for what must be edited, 1 for everything else."""
    return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FAILED


def reports_failures(verb: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a verb so that no exception leaves it as a traceback.

    The verb's `output` parameter decides whether stdout gets `{"error": {code, message}}`; the sentence
    goes to stderr in any case. The verb returns its exit code, or None for 0.
    """

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return verb(*args, **kwargs) or 0
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:  # the reader went away (`| head`), which is its right
            silence_stdout()
            return EXIT_BROKEN_PIPE
        except Exception as error:  # noqa: BLE001 - the outermost place: whatever is left is reported, never swallowed
            if isinstance(error, OSError) and _came_of_printing(error):
                return report_stdout(error)
            expected = expected_cause(error)
            if kwargs.get("output") == "json":
                print_json({"error": _as_json(expected, error)})
            if expected is None:
                report_bug(error)
                return EXIT_FAILED
            report_error(expected)
            return exit_code_of(expected)

    return wrapped


def expected_cause(error: BaseException) -> ConveyordError | None:
    """The ConveyordError that `error` is, or that every leaf of a group is (the first); None for a bug."""
    if isinstance(error, ConveyordError):
        return error
    if isinstance(error, BaseExceptionGroup):
        leaves = [expected_cause(leaf) for leaf in error.exceptions]
        return leaves[0] if all(leaves) else None
    return None


def report_error(error: ConveyordError) -> None:
    """Print what a user must know on stderr, in colour if that is a terminal."""
    from conveyord.engine.problems import DefinitionError, render  # light, but needs pydantic's core

    if isinstance(error, DefinitionError):
        click.echo(render(error.problems, colour=sys.stderr.isatty()), err=True)
    else:
        click.echo(f"error: {error}", err=True)
    if os.environ.get("CONVEYORD_DEBUG"):
        traceback.print_exception(error)


def report_bug(error: BaseException) -> None:
    """Print one line on stderr that says where the traceback was saved."""
    trace = "".join(traceback.format_exception(error))
    if os.environ.get("CONVEYORD_DEBUG"):
        sys.stderr.write(trace)
    summary = _summary(error)
    try:
        # Not in the data directory: it may be what is full or unwritable.
        handle, path = tempfile.mkstemp(prefix="conveyord-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"conveyord {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n{trace}")
        saved = f"the traceback is in {path}"
    except OSError as unsaved:
        saved = f"the traceback could not be saved ({unsaved.strerror}); CONVEYORD_DEBUG=1 prints it"
    click.echo(f"error: this is a bug in conveyord: {summary}; {saved}", err=True)


def report_stdout(error: OSError) -> int:
    """Say that what was asked for could not be printed; the exit code of that."""
    click.echo(f"error: standard output cannot be written: {error.strerror}; send it elsewhere", err=True)
    silence_stdout()
    return EXIT_FAILED


def _came_of_printing(error: OSError) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code is click.echo.__code__


def silence_stdout() -> None:
    """Send standard output nowhere, so that Python does not complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, ensure_ascii=False))


def _as_json(expected: ConveyordError | None, error: BaseException) -> dict[str, Any]:
    if expected is None:
        return {"code": "BUG", "message": _summary(error)}
    return {"code": expected.code, "message": str(expected)}


def _summary(error: BaseException) -> str:
    """One line on an unexpected exception; a group of one is what it holds."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    where = "".join(f" ({note})" for note in getattr(error, "__notes__", ())[:1])
    return f"{type(error).__name__}: {error}".split("\n", 1)[0] + where
