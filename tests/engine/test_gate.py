"""The gate before a sink: it drops what the sink has, in whole batches, and speaks the pipeline's own names."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.gate import Gate
from conveyord.engine.messages import Ack, Batch
from conveyord.engine.provenance import COLUMNS

P = Partition("in", "p0")


def batch(*spans: Span, settled: list[int] | None = None, **columns: list[int]) -> Batch:
    done: list[int] = [] if settled is None else settled
    data = pa.record_batch(columns or {"n": [1]})
    return Batch(data, spans, Tally(read=1), Ack(lambda: done.append(1)), {"in": "state"})


def held(**offsets: int) -> Positions:
    return Positions({Partition("in", name): Position(offset) for name, offset in offsets.items()})


@given(st.integers(0, 8), st.lists(st.integers(1, 3), max_size=8))
def test_what_the_sink_has_is_dropped_and_settled_and_all_else_goes_on(at: int, sizes: list[int]) -> None:
    gate, first = Gate("out", held(p0=at), names={}), 0
    for size in sizes:
        settled: list[int] = []
        if first < at < first + size:
            size = at - first  # sources end batches where sinks are
        one = batch(Span(P, first, first + size), settled=settled)
        admitted = gate.admit(one)
        assert (admitted is None) == (first + size <= at) == bool(settled)
        assert admitted is None or admitted is one
        first += size


def test_a_batch_that_the_sink_has_half_of_is_refused() -> None:
    with pytest.raises(Refused, match="it holds p0 up to 5, and a batch covers 3 to 8"):
        Gate("out", held(p0=5), names={}).admit(batch(Span(P, 3, 8)))
    with pytest.raises(Refused, match="some of the records of one batch and not the others"):
        Gate("out", held(p0=5), names={}).admit(batch(Span(P, 3, 5), Span(Partition("in", "p1"), 0, 2)))


def test_a_partition_that_the_sink_never_saw_goes_through() -> None:
    assert Gate("out", held(p0=5), names={}).admit(batch(Span(Partition("in", "p1"), 3, 8))) is not None


def test_what_went_through_does_not_go_through_again_and_is_settled_with_what_follows() -> None:
    """What an earlier run spilled was written twice if another sink lacked it and the source read it again."""
    gate, settled, doubles = Gate("out", Positions(), names={}), [], []
    first = gate.admit(batch(Span(P, 0, 4), settled=settled))
    assert first is not None
    assert gate.admit(batch(Span(P, 0, 2), settled=doubles)) is None
    assert gate.admit(batch(Span(P, 2, 4), settled=doubles)) is None
    first.ack.settle()
    assert (settled, doubles) == ([1], [])
    following = gate.admit(batch(Span(P, 4, 6), settled=settled))
    assert following is not None
    following.ack.settle()
    assert (settled, doubles) == ([1, 1], [1, 1])


def test_sources_come_under_the_pipelines_own_names() -> None:
    gate = Gate("out", held(p0=5), names={"default/other:in": "in"})
    run = Partition("default/other:in", "p0")
    one = batch(Span(run, 5, 8))
    admitted = gate.admit(Batch(one.data, one.spans, one.tally, one.ack, {run.source: "state"}))
    assert admitted is not None
    assert admitted.spans == (Span(P, 5, 8),)
    assert admitted.states == {"in": "state"}
    assert gate.admit(batch(Span(run, 2, 5))) is None


def test_provenance_goes_only_where_it_is_asked_for() -> None:
    one = batch(Span(P, 0, 1), n=[1], **{name: [2] for name in COLUMNS})
    assert Gate("out", None, names={}, keeps_provenance=True).admit(one) is one
    admitted = Gate("out", None, names={}, keeps_provenance=False).admit(one)
    assert admitted is not None
    assert admitted.data.schema.names == ["n"]


def test_a_gate_with_nothing_to_do_is_open() -> None:
    assert Gate("out", None, names={"in": "in"}).is_open
    assert not Gate("out", held(p0=1), names={}).is_open
    assert not Gate("out", None, names={"a": "b"}).is_open
    assert not Gate("out", None, names={}, keeps_provenance=False).is_open
