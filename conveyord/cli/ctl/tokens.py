"""`conveyorctl tokens`: who is let in, and as what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import click

from conveyord.cli.ctl.asking import Asking, Reading, asks_nodes, confirmed, duration, reads, yes_option
from conveyord.cli.ctl.output import Column, age, moment, show, show_done

if TYPE_CHECKING:
    from conveyord.api.messages import Token

EXPIRES_SECONDS_MAX = 10 * 365 * 86_400.0  # of the API


@click.group()
def tokens() -> None:
    """Say who is let in, and as what: a viewer reads, an operator changes entries, an admin does everything."""


@tokens.command("list")
@reads
@asks_nodes()
def list_tokens(asking: Asking, reading: Reading, output: str) -> None:
    """List all tokens, without what is secret of them."""
    from conveyord.api.messages import TokensList
    from conveyord.api.operations import TOKENS_LIST

    reply = asking.read(TOKENS_LIST, TokensList(), reading)
    show(reply, _columns(), reply.tokens, output)
    if not reply.tokens and output in ("table", "wide"):
        click.echo("no tokens yet; `conveyorctl tokens create NAME --role admin` makes one", err=True)


@tokens.command("create")
@click.argument("name")
@click.option(
    "--role", type=click.Choice(("viewer", "operator", "admin")), required=True, help="What it lets its holder do."
)
@click.option("--expires", metavar="DURATION", help="Of no use after so long, such as 90d.  [default: never]")
@asks_nodes()
def create(
    name: str, role: Literal["viewer", "operator", "admin"], expires: str | None, asking: Asking, output: str
) -> None:
    """Make a token, and print it: once, as nobody keeps it. NAME is for people."""
    from conveyord.api.messages import TokenCreateRequest
    from conveyord.api.operations import TOKEN_CREATE

    seconds = None if expires is None else duration(expires, "--expires", seconds_max=EXPIRES_SECONDS_MAX)
    reply = asking.call(TOKEN_CREATE, TokenCreateRequest(name=name, role=role, expires_seconds=seconds))
    show_done(reply, reply.token, output)
    if output in ("table", "wide"):
        click.echo(f"token {reply.id} is made ({role}); it is shown this once, so keep it now", err=True)


@tokens.command("revoke")
@click.argument("token_id", metavar="ID")
@click.option("--force", is_flag=True, help="Though no admin remains.")
@yes_option
@asks_nodes()
def revoke(token_id: str, force: bool, yes: bool, asking: Asking, output: str) -> None:
    """Let a token be of no use any more, at every node within moments."""
    from conveyord.api.messages import TokenRevokeRequest
    from conveyord.api.operations import TOKEN_REVOKE

    if confirmed(f"Revoke token {token_id} for good", yes=yes):
        reply = asking.call(TOKEN_REVOKE, TokenRevokeRequest(id=token_id, force=force))
        show_done(reply, f"token {token_id} is revoked", output)


@tokens.command("delete")
@click.argument("token_id", metavar="ID")
@yes_option
@asks_nodes()
def delete(token_id: str, yes: bool, asking: Asking, output: str) -> None:
    """Remove a token that was revoked or has expired."""
    from conveyord.api.messages import TokenDeleteRequest
    from conveyord.api.operations import TOKEN_DELETE

    if confirmed(f"Delete token {token_id} for good", yes=yes):
        reply = asking.call(TOKEN_DELETE, TokenDeleteRequest(id=token_id))
        show_done(reply, f"token {token_id} is deleted", output)


def _columns() -> tuple[Column[Token], ...]:
    now_ms = time.time() * 1000

    def expires(token: Token) -> str:
        if token.expires_at_ms is None:
            return "never"
        left = (token.expires_at_ms - now_ms) / 1000
        return f"in {age(left)}" if left > 0 else f"{age(-left)} ago"

    return (
        Column("id", lambda token: token.id),
        Column("role", lambda token: token.role),
        Column("state", lambda token: token.state),
        Column("age", lambda token: age((now_ms - token.created_at_ms) / 1000)),
        Column("expires", expires),
        Column(
            "revoked", lambda token: "" if token.revoked_at_ms is None else moment(token.revoked_at_ms), is_wide=True
        ),
        Column("changed", lambda token: str(token.changed), is_wide=True, is_number=True),
        Column("name", lambda token: token.name),
    )
