"""Topics in the names of partitions, and in the names of tables."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.positions import Partition
from conveyord.core.flow.topics import topic_of
from conveyord.core.pipeline.table_template import TableTemplate, check_template, identifier_of

TOPICS = st.from_regex(r"[A-Za-z0-9._-]{1,249}", fullmatch=True)


@given(TOPICS, st.integers(0, 10**6), st.sampled_from(["", "@0123abcd"]))
def test_the_topic_of_a_partition_is_in_its_name(topic: str, number: int, incarnation: str) -> None:
    assert topic_of(Partition("kafka", f"{topic}[{number}]{incarnation}")) == topic


@pytest.mark.parametrize(
    "name",
    ["", "a", "in/a.jsonl", "[0]", "a[]", "a[x]", "a[0]b", "a[0]@", "a[0]@0123ABCD", "a[0]@0123abcde", "/copies"],
)
def test_other_names_are_of_no_topic(name: str) -> None:
    assert topic_of(Partition("kafka", name)) is None


@given(TOPICS)
def test_a_topic_in_a_name_needs_no_quotes_and_keeps_its_length(topic: str) -> None:
    made = identifier_of(topic)
    assert re.fullmatch(r"[A-Za-z0-9_]+", made)
    assert len(made) == len(topic)
    assert identifier_of(made) == made


@given(TOPICS, st.sampled_from(["raw.{topic}", "{topic}.events", "a.b_{topic}_c.d", "raw.x"]))
def test_a_table_of_a_template_fits_it_and_no_longer_name_does(topic: str, text: str) -> None:
    template = TableTemplate(check_template(text))
    parts = template.table_of(topic).split(".")
    patterns = template.parts()
    assert len(parts) == len(patterns)
    assert all(_fits(pattern, part) for pattern, part in zip(patterns, parts, strict=True))
    assert not all(_fits(pattern, f"{part}-") for pattern, part in zip(patterns, parts, strict=True))
    assert template.is_fixed == all(isinstance(pattern, str) for pattern in patterns)


def _fits(pattern: str | re.Pattern[str], part: str) -> bool:
    return part == pattern if isinstance(pattern, str) else pattern.fullmatch(part) is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("orders", "the table 'orders' has no namespace; write such as raw.orders"),
        ("{topic}", "the table '{topic}' has no namespace; write such as raw.{topic}"),
        ("raw.{topic}_{topic}", "a table's name has {topic} once, this one has it 2 times"),
        ("raw.{Topic}", "not the name of a table: 'raw.{Topic}'; write namespace.table"),
        ("raw.", "not the name of a table"),
        ("raw.a b", "not the name of a table"),
    ],
)
def test_what_is_no_name_of_a_table_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        check_template(text)
