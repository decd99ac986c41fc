"""What verbs that ask nodes have in common: options, the call, exit codes."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.ctl.output import FORMATS
from conveyord.cli.exits import EXIT_CONFIG, reports_failures, silence_stdout
from conveyord.cli.options import F, GivenPath, output_option

if TYPE_CHECKING:
    from conveyord.api.client import Client
    from conveyord.api.client_http import Server
    from conveyord.api.operation import Operation, ReplyT, RequestT
    from conveyord.cli.ctl.target import Target

EXIT_DEADLINE = 124  # as `timeout` of coreutils says it
USAGE_STATUSES = (400, 422)  # what was asked can never be right, so someone must edit it
TIMEOUT_SECONDS = 30.0
WAIT_SECONDS_MAX = 600.0  # of the API

contexts_file_option = click.option(
    "--config-file",
    "contexts_file",
    type=GivenPath(dir_okay=False),
    help="Where contexts are.  [env CONVEYORD_CONTEXTS; default: ~/.config/conveyord/contexts.toml]",
)

_CONNECTION_OPTIONS = (
    click.option(
        "--server",
        "servers",
        multiple=True,
        metavar="URL",
        help="Ask this node; repeated: the next one if it cannot be reached.  [env CONVEYORD_SERVER]",
    ),
    click.option(
        "--token",
        metavar="TOKEN",
        help="Be let in with this: env:NAME, file:PATH, or itself, which others see in `ps`.  [env CONVEYORD_TOKEN]",
    ),
    click.option(
        "--ca",
        type=GivenPath(dir_okay=False),
        help="Whose certificates to believe, a file of PEM.  [default: the system's authorities]",
    ),
    click.option("--context", metavar="NAME", help="A cluster by its name.  [env CONVEYORD_CONTEXT]"),
    contexts_file_option,
    click.option(
        "--data-dir",
        type=GivenPath(file_okay=False),
        help="Be let in as who can read this data directory of a node on this machine.",
    ),
    click.option(
        "--timeout",
        metavar="DURATION",
        help="Give up after so long, with exit code 124.  [default: 30s]",
    ),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read. after: an index; wait: a duration; None where not given."""

    is_stale: bool
    after: int | None
    wait: str | None


@dataclass(frozen=True, slots=True)
class Asking:
    """What the command line says of whom to ask, as click gives it."""

    servers: tuple[str, ...]
    token: str | None
    ca: Path | None
    context: str | None
    contexts_file: Path | None
    data_dir: Path | None
    timeout: str | None

    def target(self) -> Target:
        """Whom to ask. Raises ConfigError."""
        from conveyord.cli.ctl.target import Flags, target

        flags = Flags(self.servers, self.token, self.ca, self.context, self.contexts_file, self.data_dir)
        return target(flags, os.environ)

    def client(self, servers: tuple[Server, ...] | None = None, *, seconds_max: float = math.inf) -> Client:
        """What asks them, or others with the same token. seconds_max: for a call. Raises ConfigError."""
        from conveyord.api.client import Client

        target, seconds = self.target(), min(self.timeout_seconds(), seconds_max)
        return Client(servers or target.servers, token=target.token, ca=target.ca, timeout_seconds=seconds)

    def timeout_seconds(self) -> float:
        """`--timeout`. Raises ConfigError."""
        return TIMEOUT_SECONDS if self.timeout is None else duration(self.timeout, "--timeout")

    def call(self, operation: Operation[RequestT, ReplyT], request: RequestT) -> ReplyT:
        """Ask once. Raises what `Client.call` raises."""
        return self.client().call(operation, request)

    def read(self, operation: Operation[RequestT, ReplyT], request: RequestT, reading: Reading) -> ReplyT:
        """Ask as `reading` says. With `--wait` alone, wait for the next change of what is there now."""
        import msgspec

        from conveyord.core.errors import ConfigError

        if reading.after is not None and reading.wait is None:
            raise ConfigError("--after says behind which index to wait for a change; give --wait with it")
        client = self.client()
        after, wait_seconds = reading.after, 0.0
        if reading.wait is not None:
            wait_seconds = duration(reading.wait, "--wait", seconds_max=WAIT_SECONDS_MAX)
            if after is None:
                after = client.call(operation, msgspec.structs.replace(request, stale=reading.is_stale)).index
        told = msgspec.structs.replace(request, stale=reading.is_stale, after=after, wait_seconds=wait_seconds)
        return client.call(operation, told)


def duration(text: str, option: str, *, seconds_max: float = 86_400.0) -> float:
    """The seconds of an option. Raises ConfigError naming it."""
    from conveyord.core.errors import ConfigError
    from conveyord.core.units import parse_seconds

    try:
        seconds = parse_seconds(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    if not 0 < seconds <= seconds_max:
        raise ConfigError(f"{option}: {text!r} is out of range; write more than 0s, {_written(seconds_max)} at most")
    return seconds


def _written(seconds: float) -> str:
    """As one would write it for an option: `10m`, `3650d`."""
    sizes = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
    unit, size = next((unit, size) for unit, size in sizes.items() if seconds % size == 0)
    return f"{seconds / size:g}{unit}"


def asks_nodes(*formats: str) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Give a verb `-o` and the options of a connection, the latter as its parameter `asking`, and report its failures.

    formats: of `-o`; all four if none is named.
    """

    def decorated(verb: Callable[..., int | None]) -> Callable[..., int]:
        @functools.wraps(verb)
        def wrapped(
            *args: Any,
            servers: tuple[str, ...],
            token: str | None,
            ca: Path | None,
            context: str | None,
            contexts_file: Path | None,
            data_dir: Path | None,
            timeout: str | None,
            **rest: Any,
        ) -> int:
            asking = Asking(servers, token, ca, context, contexts_file, data_dir, timeout)
            return reported(verb)(*args, asking=asking, **rest)

        command: Callable[..., int] = wrapped
        for option in reversed(_CONNECTION_OPTIONS):
            command = option(command)
        return output_option(*(formats or FORMATS))(command)

    return decorated


def reads(verb: F) -> F:
    """Give a verb `--stale`, `--after` and `--wait`, as its parameter `reading`. Belongs above `asks_nodes`."""

    @functools.wraps(verb)
    def wrapped(*args: Any, stale: bool, after: int | None, wait: str | None, **rest: Any) -> Any:
        return verb(*args, reading=Reading(stale, after, wait), **rest)

    for option in (
        click.option("--wait", metavar="DURATION", help="Answer at the next change, or after so long, 10m at most."),
        click.option("--after", type=click.IntRange(min=0), metavar="INDEX", help="With --wait: a change behind it."),
        click.option("-s", "--stale", is_flag=True, help="Take what the node has, without asking who leads."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]  # click wants no more of it than to be called with the options


def expect_index_option(command: F) -> F:
    """`--expect-index`."""
    return click.option(
        "--expect-index",
        type=click.IntRange(min=0),
        metavar="INDEX",
        help="Refuse if its last change is another one; 0: if it is there.",
    )(command)


def yes_option(command: F) -> F:
    """`--yes`, which `confirmed` takes."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


def confirmed(what: str, *, yes: bool) -> bool:
    """Whether the user wants `what`, a question without its mark. Raises ConfigError if nobody can be asked."""
    from conveyord.core.errors import ConfigError

    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}? Nobody can be asked here; pass --yes")
    if click.confirm(f"{what}?", err=True):
        return True
    click.echo("nothing is changed", err=True)
    return False


def reported(verb: Callable[..., int | None]) -> Callable[..., int]:
    """`reports_failures`, with the exit codes of what nodes say, and a sentence where stdout cannot be written."""

    @functools.wraps(verb)
    def run(*args: Any, **kwargs: Any) -> int:
        codes: list[int] = []

        def noted(*args: Any, **kwargs: Any) -> int | None:
            from conveyord.core.errors import ConveyordError, StorageFull

            try:
                return verb(*args, **kwargs)
            except ConveyordError as error:
                codes.append(_exit_code(error))
                raise
            except BrokenPipeError:
                raise
            except OSError as error:  # everything else that a verb touches has sentences of its own
                silence_stdout()
                raise StorageFull(f"the output cannot be written: {error.strerror or error}") from error

        code = reports_failures(noted)(*args, **kwargs)
        return codes[0] or code if codes else code

    return run


def _exit_code(error: Exception) -> int:
    """Of what nodes say; 0 for what `reports_failures` knows by itself."""
    from conveyord.api.client import Problem
    from conveyord.api.client_http import DeadlinePassed

    if isinstance(error, DeadlinePassed):
        return EXIT_DEADLINE
    return EXIT_CONFIG if isinstance(error, Problem) and error.status in USAGE_STATUSES else 0
