"""Which topics a source takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.engine.kafka.choice import TopicChoice, pattern_mistake

NAMES = st.text("abc.-_1", min_size=1, max_size=6)


@given(NAMES, NAMES)
def test_a_name_takes_itself_alone_and_its_dots_are_dots(name: str, other: str) -> None:
    assert TopicChoice((name,)).takes(other) == (name == other)


def test_an_expression_must_match_a_whole_name() -> None:
    choice = TopicChoice(("^a.*b", "c"))
    assert [choice.takes(name) for name in ("ab", "a.b", "abx", "xab", "c", "cc")] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]


def test_what_is_left_out_goes_before_what_is_taken() -> None:
    choice = TopicChoice(("^.*",), ("x", "^y.*"))
    assert [choice.takes(name) for name in ("x", "xx", "y", "ya", "z")] == [False, True, False, False, True]


def test_names_must_be_there_and_expressions_need_not() -> None:
    assert TopicChoice(("a", "^b")).names == ("a",)
    assert [TopicChoice(topics).is_fixed for topics in (("a",), ("a", "b"), ("a", "^b"))] == [True, True, False]
    assert [TopicChoice(topics).is_single for topics in (("a",), ("a", "b"), ("^b",))] == [True, False, False]
    assert TopicChoice(("a", "^b")).shown == "a, ^b"


@given(NAMES)
def test_a_name_has_no_mistake(name: str) -> None:
    assert pattern_mistake(name) is None


@pytest.mark.parametrize("text", ["", "a b", "a/b", "x" * 250, "ü", "a*", "^(", "^["])
def test_what_can_be_no_name_and_no_expression_is_told(text: str) -> None:
    mistake = pattern_mistake(text)
    assert mistake is not None
    assert repr(text) in mistake


@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, max_size=4), NAMES)
def test_the_order_of_a_choice_does_not_matter(taken: list[str], left_out: list[str], name: str) -> None:
    one, other = (
        TopicChoice(tuple(taken), tuple(left_out)),
        TopicChoice(tuple(reversed(taken)), tuple(reversed(left_out))),
    )
    assert one.takes(name) == other.takes(name) == (name in taken and name not in left_out)
