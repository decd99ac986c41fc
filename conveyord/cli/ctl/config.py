"""`conveyorctl config`: entries of configuration, kept by the cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from conveyord.cli.ctl.asking import Asking, Reading, asks_nodes, confirmed, expect_index_option, reads, yes_option
from conveyord.cli.ctl.output import Column, show, show_done, write
from conveyord.cli.options import GivenPath

if TYPE_CHECKING:
    from conveyord.api.messages import ConfigEntries, ConfigEntry, ConfigList

PAGE = 1_000
PAGE_WITH_VALUES = 100  # values have up to 256 KiB each


@click.group()
def config() -> None:
    """Read and write entries of configuration, which the cluster keeps.

    A key is parts of letters, digits, '.', '_' and '-', joined by '/'; none is '.' or '..'. A value is any bytes, up to
    256 KiB.
    """


@config.command("get")
@click.argument("key")
@click.option("--raw", is_flag=True, help="Write the bytes of the value to stdout, and nothing else.")
@reads
@asks_nodes()
def get(key: str, raw: bool, asking: Asking, reading: Reading, output: str) -> None:
    """Show one entry."""
    from conveyord.api.messages import ConfigGet
    from conveyord.api.operations import CONFIG_GET

    reply = asking.read(CONFIG_GET, ConfigGet(key=key), reading)
    if raw:
        assert isinstance(reply.entry.value, bytes), "an entry that is asked for has its value"
        write(reply.entry.value)
    else:
        show(reply, _columns(values=True), (reply.entry,), output)


@config.command("list")
@click.option("--prefix", default="", metavar="TEXT", help="Those whose keys begin so.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="So many at most.  [default: all]")
@click.option("--values", is_flag=True, help="With their values.")
@reads
@asks_nodes()
def list_entries(prefix: str, limit: int | None, values: bool, asking: Asking, reading: Reading, output: str) -> None:
    """List entries, in the order of their keys.

    More than a page of them are read one page after the other, each as of its time. `index` is the lowest.
    """
    from conveyord.api.messages import ConfigList

    page = PAGE_WITH_VALUES if values else PAGE
    request = ConfigList(prefix=prefix, limit=min(page, limit or page), values=values)
    reply = _all(asking, request, reading, limit)
    show(reply, _columns(values=values), reply.entries, output)
    if reply.more and output in ("table", "wide"):
        click.echo("and more; use a higher --limit", err=True)


@config.command("put")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "file", type=GivenPath(dir_okay=False), help="Take the value from a file.")
@expect_index_option
@asks_nodes()
def put(key: str, value: str | None, file: Path | None, expect_index: int | None, asking: Asking, output: str) -> None:
    """Write an entry: VALUE as UTF-8, the bytes of --file, or those of stdin if VALUE is `-`."""
    from conveyord.api.messages import ConfigPutRequest
    from conveyord.api.operations import CONFIG_PUT

    request = ConfigPutRequest(key=key, value=_value(value, file), expect_index=expect_index)
    reply = asking.call(CONFIG_PUT, request)
    show_done(reply, f"{key} is written, at index {reply.changed}", output)


@config.command("delete")
@click.argument("key")
@expect_index_option
@yes_option
@asks_nodes()
def delete(key: str, expect_index: int | None, yes: bool, asking: Asking, output: str) -> None:
    """Remove an entry."""
    from conveyord.api.messages import ConfigDeleteRequest
    from conveyord.api.operations import CONFIG_DELETE

    if confirmed(f"Delete {key} for good", yes=yes):
        reply = asking.call(CONFIG_DELETE, ConfigDeleteRequest(key=key, expect_index=expect_index))
        show_done(reply, f"{key} is deleted, at index {reply.changed}", output)


def _all(asking: Asking, request: ConfigList, reading: Reading, limit: int | None) -> ConfigEntries:
    """Pages until there are no more, as one reply."""
    import msgspec

    from conveyord.api.operations import CONFIG_LIST

    reply = asking.read(CONFIG_LIST, request, reading)
    entries, index, more = list(reply.entries), reply.index, reply.more
    rest = Reading(reading.is_stale, None, None)  # whoever waited has waited
    while more and (limit is None or len(entries) < limit):
        size = request.limit if limit is None else min(request.limit, limit - len(entries))
        page = asking.read(CONFIG_LIST, msgspec.structs.replace(request, behind=entries[-1].key, limit=size), rest)
        entries += page.entries
        index, more = min(index, page.index), page.more
    return msgspec.structs.replace(reply, index=index, entries=tuple(entries), more=more)


def _value(text: str | None, file: Path | None) -> bytes:
    """What is to be written. Raises ConfigError."""
    from conveyord.core.errors import ConfigError

    if (text is None) == (file is None):
        raise ConfigError("say what to write: a VALUE, `-` for stdin, or --file, and only one of them")
    if file is not None:
        try:
            with file.open("rb") as opened:
                return _read(opened, str(file))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}; name another file") from error
    assert text is not None
    return _read(sys.stdin.buffer, "stdin") if text == "-" else text.encode("utf-8", "surrogateescape")


def _read(file: BinaryIO, name: str) -> bytes:
    from conveyord.core.errors import ConfigError
    from conveyord.core.state.names import CONFIG_VALUE_BYTES_MAX

    content = file.read(CONFIG_VALUE_BYTES_MAX + 1)
    if len(content) > CONFIG_VALUE_BYTES_MAX:
        raise ConfigError(f"{name} has more than {CONFIG_VALUE_BYTES_MAX} bytes, which a value may have; split it")
    return content


def _columns(*, values: bool) -> tuple[Column[ConfigEntry], ...]:
    columns = (
        Column["ConfigEntry"]("key", lambda entry: entry.key),
        Column["ConfigEntry"]("size", lambda entry: f"{entry.size:,}", is_number=True),
        Column["ConfigEntry"]("created", lambda entry: str(entry.created), is_wide=True, is_number=True),
        Column["ConfigEntry"]("changed", lambda entry: str(entry.changed), is_number=True),
    )
    return (*columns, Column("value", _shown)) if values else columns


def _shown(entry: ConfigEntry) -> str:
    """A value as text, as far as it fits a line. Its bytes are what --raw, JSON and YAML give."""
    if not isinstance(entry.value, bytes):
        return ""
    try:
        return entry.value.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(entry.value):,} bytes that are no text"
