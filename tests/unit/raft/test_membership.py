"""How members change, and that a truncation brings back who was a member before."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import MEMBERS_MAX, Change, Membership, Memberships, Standing, decode, encode

ABC = Membership(frozenset("abc"), frozenset("d"))
SETS = st.frozensets(st.text("abcdefgh", min_size=1, max_size=3), max_size=5)


def changes(**standings: Standing) -> list[Change]:
    return [Change(node, standing) for node, standing in standings.items()]


def test_other_voters_go_through_a_joint_membership() -> None:
    joint = ABC.changed(changes(a=Standing.GONE, d=Standing.VOTER))
    assert joint == Membership(frozenset("bcd"), outgoing=frozenset("abc"))
    assert joint.is_joint
    assert joint.electorate == joint.everyone == frozenset("abcd")
    assert joint.left() == Membership(frozenset("bcd"))


def test_learners_come_and_go_in_one_step() -> None:
    found = ABC.changed(changes(d=Standing.GONE, e=Standing.LEARNER))
    assert found == Membership(frozenset("abc"), frozenset("e"))


def test_a_voter_is_demoted_only_when_the_joint_membership_is_left() -> None:
    joint = ABC.changed(changes(a=Standing.LEARNER))
    assert "a" not in joint.learners
    assert joint.left() == Membership(frozenset("bc"), frozenset("ad"))


@pytest.mark.parametrize(
    ("membership", "wanted", "says"),
    [
        (ABC.changed(changes(a=Standing.GONE)), changes(b=Standing.GONE), "being changed already"),
        (ABC, [*changes(a=Standing.GONE), *changes(a=Standing.VOTER)], "node a is named twice"),
        (ABC, changes(x=Standing.GONE), "node x is no member"),
        (ABC, changes(a=Standing.GONE, b=Standing.GONE, c=Standing.LEARNER), "no voter"),
        (ABC, [Change(str(n), Standing.LEARNER) for n in range(MEMBERS_MAX)], f"at most {MEMBERS_MAX}"),
    ],
)
def test_what_cannot_be_is_refused(membership: Membership, wanted: list[Change], says: str) -> None:
    with pytest.raises(Refused, match=says):
        membership.changed(wanted)


@given(st.tuples(SETS, SETS, SETS, SETS))
def test_a_membership_survives_its_encoding_which_does_not_depend_on_order(sets: tuple[frozenset[str], ...]) -> None:
    membership = Membership(*sets)
    assert decode(encode(membership)) == membership
    assert encode(membership) == encode(Membership(*(frozenset(sorted(one, reverse=True)) for one in sets)))


@pytest.mark.parametrize(
    "content",
    [
        [["a"], [], []],
        [["a"], [], [], [], ["witness"]],
        {"voters": ["a"]},
        [["a"], [], [], [7]],
        [["a"], [], [], None],
        5,
    ],
)
def test_what_a_newer_conveyord_may_have_written_is_refused(content: object) -> None:
    with pytest.raises(Refused, match="a newer conveyord wrote it; upgrade this node"):
        decode(msgpack.packb(content))


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", encode(ABC)[:-1], encode(ABC) + b"\x90", b"\x94\x91\xa1\xff\x90\x90\x90", b"\xdd\xff"]
)
def test_what_nobody_ever_wrote_is_damage(data: bytes) -> None:
    with pytest.raises(Corrupt, match="is not what was written"):
        decode(data)


def test_the_last_one_in_the_log_is_in_force_and_a_truncation_undoes_it() -> None:
    known = Memberships(5, ABC)
    joint = ABC.changed(changes(a=Standing.GONE))
    known.appended(8, joint)
    known.appended(9, joint.left())
    assert (known.current, known.index) == (joint.left(), 9)
    assert [known.at(index) for index in (5, 7, 8, 9, 12)] == [ABC, ABC, joint, joint.left(), joint.left()]
    known.truncated(9)
    assert known.current == joint
    known.truncated(6)
    assert (known.current, known.index) == (ABC, 5)


def test_a_compaction_keeps_what_is_in_force_at_its_index() -> None:
    known = Memberships(0, ABC)
    joint = ABC.changed(changes(a=Standing.GONE))
    known.appended(8, joint)
    known.appended(20, joint.left())
    known.compacted(10)
    assert known.at(10) == joint
    known.truncated(20)
    assert (known.current, known.index) == (joint, 10)
