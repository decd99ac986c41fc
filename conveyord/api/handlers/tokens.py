"""Tokens. The secret of one is made here, told once, and kept by nobody: the log has its hash."""

from __future__ import annotations

from conveyord.api.context import Caller, Context
from conveyord.api.messages import (
    Changed,
    Token,
    TokenCreated,
    TokenCreateRequest,
    TokenDeleteRequest,
    TokenRevokeRequest,
    Tokens,
    TokensList,
)
from conveyord.api.token_text import new_token
from conveyord.core.state.commands import TokenCreate, TokenDelete, TokenRevoke
from conveyord.core.state.rows import TokenRow
from conveyord.core.state.tokens import is_usable
from conveyord.storage.state.reading import StateView


async def list_(context: Context, _: Caller, request: TokensList) -> Tokens:
    """See `TokensList`."""
    answer = await context.cluster.read(StateView.tokens, stale=request.stale)
    now_ms = context.now_ms()
    return Tokens(index=answer.index, tokens=tuple(_shown(row, now_ms) for row in answer.value))


async def create(context: Context, caller: Caller, request: TokenCreateRequest) -> TokenCreated:
    """See `TokenCreateRequest`."""
    made = new_token()
    expires_at_ms = None
    if request.expires_seconds is not None:
        expires_at_ms = context.now_ms() + max(1, int(request.expires_seconds * 1000))
    command = TokenCreate(made.id, request.name, request.role, made.salt, made.hash, expires_at_ms)
    committed = await context.cluster.propose(command, actor=caller.actor)
    await context.tokens_seen(committed.index)  # or it would be refused here if it is used at once
    return TokenCreated(index=committed.index, id=made.id, token=made.text)


async def revoke(context: Context, caller: Caller, request: TokenRevokeRequest) -> Changed:
    """See `TokenRevokeRequest`."""
    changed = await context.changed(TokenRevoke(request.id, request.force), caller)
    await context.tokens_seen(changed.index)
    return changed


async def delete(context: Context, caller: Caller, request: TokenDeleteRequest) -> Changed:
    """See `TokenDeleteRequest`."""
    changed = await context.changed(TokenDelete(request.id), caller)
    await context.tokens_seen(changed.index)
    return changed


def _shown(row: TokenRow, now_ms: int) -> Token:
    state = "usable" if is_usable(row, now_ms) else "expired" if row.revoked_at_ms is None else "revoked"
    return Token(
        id=row.id,
        name=row.name,
        role=row.role,
        state=state,
        created_at_ms=row.created_at_ms,
        expires_at_ms=row.expires_at_ms,
        revoked_at_ms=row.revoked_at_ms,
        changed=row.changed,
    )
