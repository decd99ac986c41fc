"""`conveyorctl context`: clusters by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.ctl.asking import confirmed, contexts_file_option, reported, yes_option
from conveyord.cli.ctl.output import FORMATS, Column, show, show_facts
from conveyord.cli.options import GivenPath, output_option

if TYPE_CHECKING:
    from conveyord.cli.ctl.contexts import Context

TOKEN_CHARS_MAX = 64 * 1024


@click.group()
def context() -> None:
    """Name clusters: their servers, and how to be let in.

    \b
    The file is TOML, and yours alone (mode 0600) if a token stands in it:
      current = "prod"
      [contexts.prod]
      servers = ["https://a:7480", "https://b:7480"]
      token = "file:/home/me/.conveyord-token"   # or env:NAME, or the token itself
      ca = "/home/me/ca.pem"
    """


@context.command("list")
@contexts_file_option
@output_option(*FORMATS)
@reported
def list_contexts(contexts_file: Path | None, output: str) -> None:
    """List all contexts; * marks the one that is used where none is named."""
    from conveyord.cli.ctl.contexts import read

    path = _path(contexts_file)
    contexts = read(path)
    documents = [_document(name, one, contexts.current) for name, one in sorted(contexts.named.items())]
    columns = (
        Column[dict[str, Any]]("current", lambda one: "*" if one["is_current"] else ""),
        Column[dict[str, Any]]("name", lambda one: str(one["name"])),
        Column[dict[str, Any]]("token", lambda one: one["token"] or "none", is_wide=True),
        Column[dict[str, Any]]("ca", lambda one: one["ca"] or "the system's", is_wide=True),
        Column[dict[str, Any]]("servers", lambda one: ", ".join(one["servers"])),
    )
    show({"contexts": documents}, columns, documents, output)
    if not documents and output in ("table", "wide"):
        click.echo(f"no contexts in {path}; `conveyorctl context add NAME --server URL` makes one", err=True)


@context.command("show")
@click.argument("name", required=False)
@contexts_file_option
@output_option(*FORMATS)
@reported
def show_context(name: str | None, contexts_file: Path | None, output: str) -> None:
    """Show one context, or the current one. Tokens are masked."""
    from conveyord.cli.ctl.contexts import read
    from conveyord.core.errors import ConfigError

    path = _path(contexts_file)
    contexts = read(path)
    if not (name := name or contexts.current):
        raise ConfigError(f"no context of {path} is the current one; give a NAME, or `conveyorctl context use NAME`")
    document = _document(name, contexts.get(name, path), contexts.current)
    facts = {
        "context": f"{name}{' (current)' if document['is_current'] else ''}",
        "servers": ", ".join(document["servers"]),
        "token": document["token"] or "none",
        "ca": document["ca"] or "the system's",
    }
    show_facts(document, facts, output)


@context.command("use")
@click.argument("name")
@contexts_file_option
@reported
def use(name: str, contexts_file: Path | None) -> None:
    """Make NAME the one that is used where none is named."""
    from dataclasses import replace

    from conveyord.cli.ctl.contexts import changing

    path = _path(contexts_file)
    with changing(path) as held:
        held[0].get(name, path)
        held[0] = replace(held[0], current=name)
    click.echo(f"{name} is used now")


@context.command("add")
@click.argument("name")
@click.option("--server", "servers", multiple=True, required=True, metavar="URL", help="Of a node. May be repeated.")
@click.option("--token", default="", metavar="TOKEN", help="env:NAME, file:PATH, itself, or - to read it from stdin.")
@click.option("--ca", type=GivenPath(dir_okay=False), help="Whose certificates to believe, as PEM.")
@click.option("--use", "is_used", is_flag=True, help="Make it the current one, as the first always is.")
@click.option("--replace", "is_replaced", is_flag=True, help="Though there is one of this name.")
@contexts_file_option
@reported
def add(
    name: str,
    servers: tuple[str, ...],
    token: str,
    ca: Path | None,
    is_used: bool,
    is_replaced: bool,
    contexts_file: Path | None,
) -> None:
    """Add a context. Nothing is asked of its servers yet."""
    from conveyord.api.client_http import parse_server
    from conveyord.cli.ctl.contexts import Context, Contexts, changing, check_name
    from conveyord.core.errors import ConfigError

    check_name(name)
    path = _path(contexts_file)
    if ca is not None and not ca.is_file():
        raise ConfigError(f"there is no file {ca}; --ca names a file of PEM")
    urls = tuple(str(parse_server(server)) for server in servers)
    added = Context(urls, _token(token), "" if ca is None else str(ca.absolute()))
    with changing(path) as held:
        before = held[0]
        if name in before.named and not is_replaced:
            raise ConfigError(f"there is a context {name!r} in {path}; take another name, or --replace it")
        current = name if is_used or not before.named else before.current
        held[0] = Contexts(current, {**before.named, name: added})
    click.echo(f"context {name} is kept in {path}{', and used now' if current == name else ''}")


@context.command("remove")
@click.argument("name")
@yes_option
@contexts_file_option
@reported
def remove(name: str, yes: bool, contexts_file: Path | None) -> None:
    """Forget a context, and its token."""
    from conveyord.cli.ctl.contexts import Contexts, changing, read

    path = _path(contexts_file)
    read(path).get(name, path)
    if not confirmed(f"Forget context {name}", yes=yes):
        return
    with changing(path) as held:
        before = held[0]
        before.get(name, path)
        named = {other: one for other, one in before.named.items() if other != name}
        held[0] = Contexts("" if before.current == name else before.current, named)
    click.echo(f"context {name} is forgotten")


def _path(contexts_file: Path | None) -> Path:
    from conveyord.cli.ctl.contexts import default_path

    return contexts_file or Path(os.environ.get("CONVEYORD_CONTEXTS") or default_path())


def _token(text: str) -> str:
    """What is kept of a token: a file by its whole path, so that it is found from anywhere."""
    if text == "-":
        text = sys.stdin.read(TOKEN_CHARS_MAX).strip()
    kind, _, name = text.partition(":")
    return f"file:{Path(name).expanduser().absolute()}" if kind == "file" else text


def _document(name: str, one: Context, current: str) -> dict[str, Any]:
    from conveyord.cli.ctl.contexts import masked

    return {
        "name": name,
        "is_current": name == current,
        "servers": list(one.servers),
        "token": masked(one.token),
        "ca": one.ca,
    }
