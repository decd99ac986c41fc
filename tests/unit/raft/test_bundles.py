"""Which commands share an entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Refused
from conveyord.core.raft.bundles import BUNDLE_BYTES, BUNDLE_COMMANDS, Asked, bundled, pack, unpack

OBJECTS = st.none() | st.sampled_from(["a", "b", "c", "d"])
SIZES = st.integers(0, 3) | st.integers(BUNDLE_BYTES // 3, BUNDLE_BYTES + 1)


@given(st.lists(st.tuples(OBJECTS, SIZES), max_size=30))
def test_no_bundle_has_two_about_one_object_and_none_is_lost_or_overtaken(wanted: list[tuple[str | None, int]]) -> None:
    asked = [Asked(number, bytes(size), about) for number, (about, size) in enumerate(wanted)]
    bundles = bundled(asked)
    assert sorted(one.number for bundle in bundles for one in bundle) == list(range(len(asked)))
    for bundle in bundles:
        objects = [one.about for one in bundle]
        assert len(set(objects)) == len(objects) > 0
        assert len(bundle) == 1 or None not in objects
        assert len(bundle) == 1 or sum(len(one.command) for one in bundle) <= BUNDLE_BYTES
    for about in "abcd":
        numbers = [one.number for bundle in bundles for one in bundle if one.about == about]
        assert numbers == sorted(numbers)


def test_what_can_share_an_entry_does_as_far_as_it_goes() -> None:
    asked = [Asked(number, b"x", str(number)) for number in range(BUNDLE_COMMANDS + 1)]
    assert [len(bundle) for bundle in bundled(asked)] == [BUNDLE_COMMANDS, 1]
    asked.insert(5, Asked(-1, b"x", None))
    assert [len(bundle) for bundle in bundled(asked)] == [BUNDLE_COMMANDS, 1, 1], "what is alone closes no bundle"


@given(st.lists(st.binary(max_size=20)))
def test_a_bundle_is_what_was_packed(parts: list[bytes]) -> None:
    assert unpack(pack(parts)) == parts


@pytest.mark.parametrize("data", [b"", b"\x91\x01", b"\x92\xc4\x01a", b"\xc4\x01a", pack([b"a"]) + b"b"])
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(Refused, match="a bundle of commands cannot be read"):
        unpack(data)
