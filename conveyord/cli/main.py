"""The command groups, and how a command line ends in an exit code.

Nothing heavy is imported here: every command imports what it needs when it runs, so that `--help`
and shell completion answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from conveyord import __version__
from conveyord.cli.audit import audit
from conveyord.cli.buffer import buffer
from conveyord.cli.check_config import check_config
from conveyord.cli.create import create
from conveyord.cli.ctl.completion import completion
from conveyord.cli.ctl.verbs import VERBS
from conveyord.cli.default_verb import DefaultVerb
from conveyord.cli.dev import dev
from conveyord.cli.dlq import dlq
from conveyord.cli.doctor import doctor
from conveyord.cli.exits import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, report_stdout, silence_stdout
from conveyord.cli.fmt import fmt
from conveyord.cli.graph import graph
from conveyord.cli.plugins import plugins
from conveyord.cli.produce import produce
from conveyord.cli.query import query
from conveyord.cli.run import run
from conveyord.cli.schema import schema
from conveyord.cli.start import start
from conveyord.cli.test import test
from conveyord.cli.validate import validate

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=DefaultVerb, context_settings=_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def conveyord() -> None:
    """Move records into lakehouse tables, exactly once.

    Options without a verb are those of `start`: `conveyord --roles router` starts a node.

    \b
    Exit codes: 0 done, 1 it failed, 2 the command line or a file is wrong,
    3 a test of a pipeline failed, 130 or 143 stopped at once by a second Ctrl-C or SIGTERM.
    """


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, message="%(prog)s %(version)s")
def conveyorctl() -> None:
    """Ask nodes, and look into what conveyord keeps.

    \b
    Exit codes: 0 done, 1 it failed, 2 the command line, a file or a setting is wrong,
    4 done in part, 124 no answer in time, 130 or 143 stopped by Ctrl-C or SIGTERM.
    """


for _verb in (start, dev, check_config, doctor):
    conveyord.add_command(_verb)
conveyord.add_command(run)
conveyord.add_command(graph)
conveyord.add_command(test)
conveyord.add_command(produce)
for _command in (create, fmt, plugins, schema, validate):
    conveyord.add_command(_command)
for _command in (query, audit, buffer, dlq):
    conveyord.add_command(_command)
    conveyorctl.add_command(_command)
for _command in VERBS:
    conveyorctl.add_command(_command)
conveyord.add_command(completion)


def invoke(group: click.Group, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's, and return its exit code.

    Failures of a verb are already reported by it.
    """
    if sys.stdout is None:  # it was closed before we came: what is printed is for nobody
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 gets escapes, never a traceback
            stream.reconfigure(errors="backslashreplace")
    try:
        code = group.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # of the last flush
        return report_stdout(error)
    return code if isinstance(code, int) else 0
