"""`conveyorctl events`: what happens in the cluster, in order and without gaps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from conveyord.cli.ctl.asking import Asking, asks_nodes
from conveyord.cli.ctl.output import printable, show_done, write

if TYPE_CHECKING:
    from conveyord.api.client import Client, Problem
    from conveyord.api.messages import Event, Events, EventsAfter

TOPICS = ("cluster", "config", "members", "settings", "standings", "tokens")
PAGE = 100  # values have up to 256 KiB each
WAIT_SECONDS = 30.0  # for one answer while following
PAUSE_SECONDS_MAX = 5.0  # before asking again where nobody answers
AS_IT_IS = ("config", "standings")  # topics whose values are not msgpack
HEAD = f"{'INDEX':>8}  {'TOPIC':<9}  {'KIND':<6}  KEY"


@click.command()
@click.option("--topic", "topics", type=click.Choice(TOPICS), multiple=True, help="Of this alone. May be repeated.")
@click.option("--after", type=click.IntRange(0), metavar="CURSOR", help="Behind that.  [default: all that are kept]")
@click.option(
    "--history", default="", metavar="ID", help="That came with the cursor: tells when a backup was restored."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens; without --after, from now on.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help="End after about so many: those of an entry together."
)
@asks_nodes()
def events(
    topics: tuple[str, ...],
    after: int | None,
    history: str,
    follow: bool,
    limit: int | None,
    asking: Asking,
    output: str,
) -> None:
    """List what happened: each change once, in order, without gaps.

    At the end stderr tells the cursor to go on from, with `--after` and `--history`. Where events behind a cursor are
    not kept any more, that is an error: read what is there now instead. With -o json, each page of them is one line.
    """
    from conveyord.api.messages import EventsAfter

    client = asking.client()
    start = after if after is not None else _now(client) if follow else 0
    request = EventsAfter(after=start, topics=",".join(topics), history=history, limit=min(PAGE, limit or PAGE))
    reader = _Reader(client, request, output, is_anywhere=after is None)
    try:
        reader.run(limit, follow=follow)
    finally:
        if reader.has_read and output in ("table", "wide"):
            click.echo(reader.cursor(), err=True)


class _Reader:
    """Where somebody is in the events, and what was printed."""

    def __init__(self, client: Client, request: EventsAfter, output: str, *, is_anywhere: bool) -> None:
        self._client = client
        self._request = request
        self._output = output
        self._is_anywhere = is_anywhere
        self._shown = 0
        self.has_read = False

    def cursor(self) -> str:
        history = f" --history {self._request.history}" if self._request.history else ""
        return f"go on with: --after {self._request.after}{history}"

    def run(self, limit: int | None, *, follow: bool) -> None:
        """Print pages until there are no more, or for ever. Raises what `Client.call` raises."""
        import msgspec

        while limit is None or self._shown < limit:
            page = self._page(follow=follow)
            self.has_read = True
            is_last = not follow and page.through >= page.index
            self._print(page, is_last=is_last)
            left = PAGE if limit is None else min(PAGE, limit - self._shown)
            wait_seconds = WAIT_SECONDS if follow and page.through >= page.index else 0.0
            self._request = msgspec.structs.replace(
                self._request,
                after=page.through,
                history=page.history,
                wait_seconds=wait_seconds,
                limit=max(left, 1),
            )
            if is_last:
                return

    def _page(self, *, follow: bool) -> Events:
        """The next one. While following, whoever does not answer is asked again, with longer and longer pauses."""
        import msgspec

        from conveyord.api.client import Problem
        from conveyord.api.client_http import DeadlinePassed
        from conveyord.api.operations import EVENTS_AFTER
        from conveyord.core.errors import Retryable

        pause_seconds = 0.0
        while True:
            try:
                return self._client.call(EVENTS_AFTER, self._request)
            except Problem as error:
                if (oldest := self._oldest_kept(error)) is not None:
                    click.echo(f"events up to {oldest} are not kept any more", err=True)
                    self._request = msgspec.structs.replace(self._request, after=oldest)
                    continue
                if not (follow and error.code == Retryable.code):
                    raise
                failure: Exception = error
            except (Retryable, DeadlinePassed) as error:
                if not follow:
                    raise
                failure = error
            if pause_seconds == 0:
                click.echo(f"{failure}; trying on", err=True)
            pause_seconds = min(pause_seconds * 2 or 0.25, PAUSE_SECONDS_MAX)
            time.sleep(pause_seconds)

    def _oldest_kept(self, error: Problem) -> int | None:
        """Where to begin, if nobody said where and the first ones are not kept."""
        oldest = error.members.get("oldest")
        return oldest if self._is_anywhere and self._shown == 0 and isinstance(oldest, int) else None

    def _print(self, page: Events, *, is_last: bool) -> None:
        if self._output in ("json", "yaml"):
            if page.events or (is_last and not self._shown):  # whoever parses it gets a page at least
                write(b"---\n" if self._output == "yaml" else b"")
                show_done(page, "", self._output)
        else:
            if page.events and not self._shown:
                click.echo(f"{HEAD}  VALUE" if self._output == "wide" else HEAD)
            for event in page.events:
                click.echo(_line(event, is_wide=self._output == "wide"))
        self._shown += len(page.events)


def _now(client: Client) -> int:
    """The newest cursor that the node has."""
    from conveyord.api.messages import StatusGet
    from conveyord.api.operations import STATUS

    return client.call(STATUS, StatusGet()).applied


def _line(event: Event, *, is_wide: bool) -> str:
    line = f"{event.index:>8}  {event.topic:<9}  {event.kind:<6}  {printable(event.key)}"
    return f"{line}  {printable(_value(event))}".rstrip() if is_wide else line


def _value(event: Event) -> str:
    """What the key is now, as docs/state.md says: of configuration and standings as it is, of others as JSON."""
    import msgspec

    if event.value is None:
        return ""
    try:
        if event.topic in AS_IT_IS:
            return event.value.decode("utf-8")
        return msgspec.json.encode(msgspec.msgpack.decode(event.value)).decode()
    except (UnicodeDecodeError, msgspec.MsgspecError):
        return f"{len(event.value):,} bytes"
