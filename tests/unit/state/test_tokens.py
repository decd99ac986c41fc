"""Tokens: made, revoked and deleted, and never without an admin unless that is forced."""

from __future__ import annotations

import msgpack
import pytest

from conveyord.core.state import names
from conveyord.core.state.commands import TokenDelete, TokenRevoke
from conveyord.core.state.replies import EXISTS, INVALID, LAST_ADMIN, LIMIT, NOT_FOUND, WRONG_STATE, Ok
from conveyord.core.state.rows import TOKENS, Change, Gone, TokenRow
from conveyord.core.state.tokens import is_usable
from tests.unit.state.rig import Memory, token


def test_a_token_is_made_and_no_watcher_learns_its_hash() -> None:
    state = Memory()
    decision = state.do(token(expires_at_ms=5_000))
    assert decision.reply == Ok(1)
    row = TokenRow("t1", "for tests", "admin", b"s" * 16, b"h" * 32, 1_000, 5_000, None, 1)
    assert decision.rows == (row,)
    (event,) = decision.events
    assert event.value is not None
    told = msgpack.unpackb(event.value)
    assert told == {key: value for key, value in row._asdict().items() if key not in ("salt", "hash")}
    assert b"h" * 32 not in event.value
    assert b"s" * 16 not in event.value


@pytest.mark.parametrize(
    ("revoked", "expires", "usable"),
    [(None, None, True), (None, 11, True), (None, 10, False), (3, None, False), (3, 11, False)],
)
def test_a_token_is_of_use(revoked: int | None, expires: int | None, usable: bool) -> None:
    assert is_usable(TokenRow("t", "n", "viewer", b"", b"", 0, expires, revoked, 1), 10) is usable


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"role": "root"}, "'root' is no role of a token; write one of viewer, operator, admin"),
        ({"hash": b"h"}, "a hash of 1 and a salt of 16 bytes; make one of 32 with a salt of 16 or more"),
        ({"salt": b""}, "a hash of 32 and a salt of 0 bytes; make one of 32 with a salt of 16 or more"),
        (
            {"name": "t 1"},
            "'t 1' is no id of a token; write up to 64 letters, digits, '.', '_', '-'; a letter or digit first",
        ),
        ({"expires_at_ms": 1_000}, "token t1 would have expired when it is made; let it expire later"),
    ],
)
def test_what_is_no_token(other: dict[str, object], message: str) -> None:
    assert Memory().no(token(**other)) == (INVALID, message)


def test_an_id_is_used_once() -> None:
    state = Memory()
    state.ok(token())
    assert state.no(token()) == (EXISTS, "there is a token t1 already; take another id")


def test_a_token_is_revoked_once() -> None:
    state = Memory()
    state.ok(token("t1", "viewer"))
    state.at_ms = 2_000
    assert state.ok(TokenRevoke("t1")) == 2
    row = state.token("t1")
    assert row is not None
    assert (row.revoked_at_ms, row.changed) == (2_000, 2)
    decision = state.do(TokenRevoke("t1"))
    assert (decision.reply, decision.rows) == (Ok(2), ())
    assert state.no(TokenRevoke("t2")) == (NOT_FOUND, "there is no token t2; nothing to revoke")


def test_the_last_admin_remains() -> None:
    state = Memory()
    state.ok(token("t1"))
    state.ok(token("t2", expires_at_ms=2_000))
    state.ok(token("t3", "operator"))
    state.at_ms = 1_999
    assert state.ok(TokenRevoke("t1")), "the other admin is of use still"
    assert state.no(TokenRevoke("t2")) == (
        LAST_ADMIN,
        "token t2 is the last admin; make another one first, or force it and be locked out",
    )
    state.at_ms = 2_000
    assert state.ok(TokenRevoke("t2")), "it has expired: nothing is lost"


def test_an_admin_that_expired_is_none_that_remains() -> None:
    state = Memory()
    state.ok(token("t1"))
    state.ok(token("t2", expires_at_ms=2_000))
    state.at_ms = 3_000
    assert state.no(TokenRevoke("t1"))[0] == LAST_ADMIN
    assert state.ok(TokenRevoke("t1", force=True))


def test_only_what_is_of_no_use_is_deleted() -> None:
    state = Memory()
    state.ok(token("t1", "viewer", expires_at_ms=2_000))
    assert state.no(TokenDelete("t1")) == (WRONG_STATE, "token t1 is in use; revoke it first")
    state.at_ms = 2_000
    decision = state.do(TokenDelete("t1"))
    assert decision.rows == (Gone(TOKENS, "t1"),)
    assert decision.events == (Change(TOKENS, "t1", "delete", None),)
    assert state.no(TokenDelete("t1")) == (NOT_FOUND, "there is no token t1; nothing to delete")


def test_there_can_only_be_so_many() -> None:
    state = Memory()
    state.ok(token())
    state.rows[TOKENS] |= {f"x{at}": state.token("t1") for at in range(names.TOKENS_MAX - 1)}
    assert state.no(token("t2")) == (
        LIMIT,
        "there are 1000 tokens, at most that many; delete those that were revoked",
    )
