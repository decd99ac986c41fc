"""Configuration entries: keys, compare-and-set, limits."""

from __future__ import annotations

import pytest

from conveyord.core.state import names
from conveyord.core.state.commands import ConfigDelete, ConfigPut
from conveyord.core.state.config import decide_put
from conveyord.core.state.replies import CONFLICT, INVALID, LIMIT, NOT_FOUND, No, Ok
from conveyord.core.state.rows import CONFIG, Change, ConfigRow, Gone, Moment
from tests.unit.state.rig import Memory


def test_an_entry_is_written_with_the_index_of_its_first_and_last_change() -> None:
    state = Memory()
    decision = state.do(ConfigPut("a/b", b"one"))
    assert decision.reply == Ok(1)
    assert decision.rows == (ConfigRow("a/b", 1, 1, 6, b"one"),)
    assert decision.events == (Change(CONFIG, "a/b", "put", b"one"),)
    assert decision.grown == (1, 6)
    decision = state.do(ConfigPut("a/b", b"others"))
    assert decision.rows == (ConfigRow("a/b", 1, 2, 9, b"others"),)
    assert decision.grown == (0, 3)


def test_an_entry_that_is_written_again_as_it_is_has_changed() -> None:
    state = Memory()
    assert [state.ok(ConfigPut("a", b"x")), state.ok(ConfigPut("a", b"x"))] == [1, 2]


def test_an_entry_is_deleted() -> None:
    state = Memory()
    state.ok(ConfigPut("a", b"12"))
    decision = state.do(ConfigDelete("a"))
    assert decision.reply == Ok(2)
    assert decision.rows == (Gone(CONFIG, "a"),)
    assert decision.events == (Change(CONFIG, "a", "delete", None),)
    assert state.size == (0, 0)
    assert state.no(ConfigDelete("a")) == (NOT_FOUND, "there is no configuration entry a; nothing to delete")


@pytest.mark.parametrize(
    "make", [lambda expect: ConfigPut("a", b"2", expect), lambda expect: ConfigDelete("a", expect)]
)
def test_only_what_is_at_the_expected_index_is_changed(make) -> None:
    state = Memory()
    assert state.no(make(3)) == (CONFLICT, "configuration entry a is not there, expected index 3; read it again")
    state.ok(ConfigPut("a", b"1", 0))
    assert state.no(make(0)) == (
        CONFLICT,
        "configuration entry a is there, changed last at index 2; expected none",
    )
    assert state.no(make(1)) == (
        CONFLICT,
        "configuration entry a was changed last at index 2, expected index 1; read it again",
    )
    assert state.ok(make(2)) == 5


def test_what_is_not_there_cannot_be_deleted_even_if_that_was_expected() -> None:
    assert Memory().no(ConfigDelete("a", 0))[0] == NOT_FOUND


@pytest.mark.parametrize("key", ["a", "A.b_c-d/e", "0", "a/b/c", "x" * names.CONFIG_KEY_CHARS_MAX, "..", "a/.b"])
def test_a_key_can_be(key: str) -> None:
    assert Memory().ok(ConfigPut(key, b"")) == 1


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "a//b", "a b", "ä", "a\n", "a\0", "a*", "\u0661"])
def test_a_key_cannot_be(key: str) -> None:
    code, message = Memory().no(ConfigPut(key, b""))
    assert code == INVALID
    assert message == f"{key!a} is no key; write letters, digits, '.', '_' and '-' in parts joined by '/'"
    assert Memory().no(ConfigDelete(key)) == (code, message)


def test_a_key_has_a_length() -> None:
    assert Memory().no(ConfigPut("x" * 513, b"")) == (INVALID, "a key of 513 characters, at most 512; shorten it")


def test_a_value_has_a_size() -> None:
    most = names.CONFIG_VALUE_BYTES_MAX
    assert Memory().ok(ConfigPut("a", bytes(most))) == 1
    assert Memory().no(ConfigPut("a", bytes(most + 1))) == (
        INVALID,
        "a: 262145 bytes, at most 262144; keep them elsewhere",
    )


def test_there_can_only_be_so_many_entries() -> None:
    state = Memory()
    state.ok(ConfigPut("a", b"1"))
    state.size = (names.CONFIG_ENTRIES_MAX, 10)
    assert state.no(ConfigPut("b", b"1")) == (
        LIMIT,
        "b: there are 100000 configuration entries, at most that many; delete some",
    )
    assert state.ok(ConfigPut("a", b"22")), "one that is there can be changed"


def test_there_can_only_be_so_many_bytes() -> None:
    state = Memory()
    state.ok(ConfigPut("a", b"333"))
    state.size = (1, names.CONFIG_BYTES_MAX)
    assert state.no(ConfigPut("a", b"4444")) == (
        LIMIT,
        "a: the configuration would have 268435457 bytes, at most 268435456; delete some",
    )
    assert state.ok(ConfigPut("a", b"22")), "it can become smaller"


def test_a_decision_does_nothing_by_itself() -> None:
    state = Memory()
    assert decide_put(state, Moment(1, 0), ConfigPut("a", b"")).reply == Ok(1)
    assert state.config("a") is None
    assert not isinstance(decide_put(state, Moment(1, 0), ConfigPut("a", b"", 0)).reply, No)
