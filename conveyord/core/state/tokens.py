"""Who may do what: tokens with a role. Whether one has expired is judged by who checks it, by its own clock.

No event of a token carries its hash.
"""

from __future__ import annotations

import msgpack

from conveyord.core.state.commands import TokenCreate, TokenDelete, TokenRevoke
from conveyord.core.state.names import TOKENS_MAX, shown, wrong_id, wrong_text
from conveyord.core.state.replies import EXISTS, INVALID, LAST_ADMIN, LIMIT, NOT_FOUND, WRONG_STATE, No, Ok
from conveyord.core.state.rows import TOKENS, Change, Decision, Gone, Moment, TokenRow, View, refused

VIEWER, OPERATOR, ADMIN = "viewer", "operator", "admin"
TOKEN_ROLES = (VIEWER, OPERATOR, ADMIN)
HASH_BYTES = 32
SALT_BYTES_MIN = 16


def is_usable(token: TokenRow, at_ms: int) -> bool:
    """Whether a token is worth anything at that time."""
    return token.revoked_at_ms is None and (token.expires_at_ms is None or token.expires_at_ms > at_ms)


def check_create(command: TokenCreate) -> No | None:
    """What can be said of it without the state."""
    if command.role not in TOKEN_ROLES:
        return No(INVALID, f"{shown(command.role)} is no role of a token; write one of {', '.join(TOKEN_ROLES)}")
    if len(command.hash) != HASH_BYTES or len(command.salt) < SALT_BYTES_MIN:
        return No(
            INVALID,
            f"a hash of {len(command.hash)} and a salt of {len(command.salt)} bytes; make one of {HASH_BYTES} with a "
            f"salt of {SALT_BYTES_MIN} or more",
        )
    return wrong_id("token", command.token) or wrong_text("name", command.name)


def decide_create(view: View, moment: Moment, command: TokenCreate) -> Decision:
    """See `TokenCreate`."""
    token, expires = command.token, command.expires_at_ms
    if view.token(token) is not None:
        return refused(EXISTS, f"there is a token {token} already; take another id")
    if expires is not None and expires <= moment.at_ms:
        return refused(INVALID, f"token {token} would have expired when it is made; let it expire later")
    if len(list(view.tokens())) >= TOKENS_MAX:
        return refused(LIMIT, f"there are {TOKENS_MAX} tokens, at most that many; delete those that were revoked")
    row = TokenRow(
        token, command.name, command.role, command.salt, command.hash, moment.at_ms, expires, None, moment.index
    )
    return _put(row)


def check_revoke(command: TokenRevoke | TokenDelete) -> No | None:
    """What can be said of it without the state."""
    return wrong_id("token", command.token)


def decide_revoke(view: View, moment: Moment, command: TokenRevoke) -> Decision:
    """See `TokenRevoke`."""
    token, found = command.token, view.token(command.token)
    if found is None:
        return refused(NOT_FOUND, f"there is no token {token}; nothing to revoke")
    if found.revoked_at_ms is not None:
        return Decision(Ok(found.changed))
    if found.role == ADMIN and not command.force:
        others = [one for one in view.tokens() if one.id != token and one.role == ADMIN]
        if is_usable(found, moment.at_ms) and not any(is_usable(one, moment.at_ms) for one in others):
            return refused(
                LAST_ADMIN, f"token {token} is the last admin; make another one first, or force it and be locked out"
            )
    return _put(found._replace(revoked_at_ms=moment.at_ms, changed=moment.index))


def decide_delete(view: View, moment: Moment, command: TokenDelete) -> Decision:
    """See `TokenDelete`."""
    token, found = command.token, view.token(command.token)
    if found is None:
        return refused(NOT_FOUND, f"there is no token {token}; nothing to delete")
    if is_usable(found, moment.at_ms):
        return refused(WRONG_STATE, f"token {token} is in use; revoke it first")
    return Decision(Ok(moment.index), (Gone(TOKENS, token),), (Change(TOKENS, token, "delete", None),))


def _put(row: TokenRow) -> Decision:
    told = {name: value for name, value in row._asdict().items() if name not in ("salt", "hash")}
    return Decision(Ok(row.changed), (row,), (Change(TOKENS, row.id, "put", bytes(msgpack.packb(told))),))
