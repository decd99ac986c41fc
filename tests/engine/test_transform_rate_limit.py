"""The transform `rate_limit`, by exact times of a test clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from trio.testing import MockClock

from conveyord.core.errors import ConfigError
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.messages import Ack, Batch, Eos, Message, Watermark
from conveyord.engine.origin import Origin, Place, RecordRef
from conveyord.operators.transform_rate_limit import RateLimitTransform
from tests.engine.graph_rig import World, numbered, pipeline, run_now, sink, source, transform

PARTITION = Partition("source", "p")


def made(listened: tuple[str, ...] = (), **options: Any) -> RateLimitTransform:
    context = OperatorContext(
        pipeline="default/test",
        stage="slower",
        data_dir=Path("unused"),
        threads=trio.CapacityLimiter(1),
        listened=frozenset(listened),
    )
    return RateLimitTransform(RateLimitTransform.Config(**options), context)


def batch(rows: int, *, first: int = 0) -> Batch:
    data = pa.record_batch({"n": pa.array(range(first, first + rows), pa.int64())})
    origin = Origin(data, lambda row: Place(RecordRef(PARTITION, first + row)))
    return Batch(data, (Span(PARTITION, first, first + rows),), Tally(read=rows), Ack(lambda: None), origin=origin)


class Timed:
    """An outbound that keeps what it gets, and when."""

    def __init__(self) -> None:
        self.got: list[tuple[float, Message]] = []
        self.extra: list[dict[str, Batch]] = []

    async def send(self, message: Message, extra: Any = None) -> None:
        self.got.append((trio.current_time(), message))
        self.extra.append(dict(extra or {}))

    @property
    def times(self) -> list[float]:
        start = self.got[0][0]
        return [at - start for at, _ in self.got]


async def feed(stage: RateLimitTransform, *messages: Message) -> Timed:
    """What comes out when all `messages` lie ready."""
    into, inbound = trio.open_memory_channel[Message](len(messages) + 1)
    for each in (*messages, Eos()):
        into.send_nowait(each)
    out = Timed()
    await stage.run(inbound, out)
    return out


def fed(stage: RateLimitTransform, *messages: Message) -> Timed:
    return trio.run(feed, stage, *messages, clock=MockClock(autojump_threshold=0))


def test_batches_leave_when_their_rows_are_paid_for() -> None:
    first, second, third = batch(10), batch(10), batch(5)
    out = fed(made(rows_per_second=10, burst="1s"), first, second, Watermark(3), third)
    assert out.times == [0, 1.0, 1.0, 1.5]
    assert [message for _, message in out.got] == [first, second, Watermark(3), third], "as they came"


def test_a_rate_below_one_batch_a_second_delays_the_whole_batch() -> None:
    async def main() -> float:
        start = trio.current_time()
        out = await feed(made(rows_per_second=0.5, burst="2s"), batch(101))
        return out.got[0][0] - start

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == 200


def test_the_burst_comes_back_after_a_pause_and_no_more_than_it() -> None:
    async def main() -> list[float]:
        into, inbound = trio.open_memory_channel[Message](9)
        out = Timed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made(rows_per_second=10, burst="3s").run, inbound, out)
            into.send_nowait(batch(30))
            await trio.sleep(1000)
            for each in (batch(30), batch(1), Eos()):
                into.send_nowait(each)
        return out.times

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == pytest.approx([0, 1000, 1000.1])


def test_bytes_are_counted_as_the_rows_take_them_in_memory() -> None:
    assert batch(10).data.nbytes == 80
    assert fed(made(bytes_per_second=80), batch(10), batch(10), batch(20)).times == [0, 1, 3]
    threefold = made(rows_per_second=None, bytes_per_second=80, burst="3s")
    assert fed(threefold, *[batch(10)] * 5).times == [0, 0, 0, 1, 2]


def test_the_stricter_of_two_limits_counts() -> None:
    assert fed(made(rows_per_second=10, bytes_per_second=40), batch(5), batch(10)).times == [0, 2]
    assert fed(made(rows_per_second=5, bytes_per_second="1KiB"), batch(5), batch(10)).times == [0, 2]


def test_a_batch_without_rows_does_not_wait() -> None:
    assert fed(made(rows_per_second=1), batch(1), batch(0), batch(0)).times == [0, 0, 0]


def test_nothing_is_buffered_while_a_batch_waits() -> None:
    async def main() -> None:
        into, inbound = trio.open_memory_channel[Message](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made(rows_per_second=1).run, inbound, Timed())
            await into.send(batch(100))
            with trio.move_on_after(98) as early:
                await into.send(batch(1))
            assert early.cancelled_caught
            with trio.fail_after(2):
                await into.send(batch(1))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_wait_can_be_cancelled() -> None:
    async def main() -> float:
        start = trio.current_time()
        with trio.move_on_after(5):
            await feed(made(rows_per_second=1), batch(1_000_000))
        return trio.current_time() - start

    assert trio.run(main, clock=MockClock(autojump_threshold=0)) == 5


@given(
    st.lists(st.integers(0, 30), max_size=8), st.sampled_from([0.5, 1, 7, 100]), st.sampled_from(["1s", "500ms", "3s"])
)
def test_no_row_is_lost_and_none_leaves_too_soon(sizes: list[int], rate: float, burst: str) -> None:
    out = fed(made(rows_per_second=rate, burst=burst), batch(0), *(batch(size) for size in sizes))
    passed = 0
    capacity = rate * {"1s": 1, "500ms": 0.5, "3s": 3}[burst]
    for at, (_, message) in zip(out.times, out.got, strict=True):
        assert isinstance(message, Batch)
        passed += message.data.num_rows
        assert passed <= capacity + rate * at + 1e-6
    assert passed == sum(sizes)


def test_drop_keeps_the_rows_that_may_pass_and_counts_the_others() -> None:
    out = fed(made(rows_per_second=10, on_excess="drop"), batch(4), batch(10, first=4), batch(3, first=14))
    assert out.times == [0, 0, 0]
    assert [message.data["n"].to_pylist() for _, message in out.got] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], []]
    assert [message.tally for _, message in out.got] == [Tally(read=4), Tally(10, filtered=4), Tally(3, filtered=3)]
    assert out.extra == [{}, {}, {}]


def test_what_is_dropped_leaves_by_its_output_and_knows_its_records() -> None:
    out = fed(made(("dropped",), rows_per_second=10, on_excess="drop"), batch(4), batch(10, first=4))
    assert [extra["dropped"].data["n"].to_pylist() for extra in out.extra] == [[], [10, 11, 12, 13]]
    dropped, passed = out.extra[1]["dropped"], out.got[1][1]
    assert dropped.tally.rows == 4
    assert [dropped.origin.place(row).record.offset for row in range(4)] == [10, 11, 12, 13]
    assert [passed.origin.place(row).record.offset for row in range(6)] == [4, 5, 6, 7, 8, 9]


def test_a_row_larger_than_the_burst_passes_when_the_bucket_is_full() -> None:
    out = fed(made(bytes_per_second=4, on_excess="drop"), batch(5))
    assert out.got[0][1].data.num_rows == 1


def test_tag_lets_all_pass_and_marks_what_is_too_much() -> None:
    out = fed(made(rows_per_second=3, on_excess="tag"), batch(2), batch(4, first=2), batch(0))
    tags = [message.data["_rate_limited"].to_pylist() for _, message in out.got]
    assert tags == [[False, False], [False, True, True, True], []]
    assert [message.tally.rows for _, message in out.got] == [2, 4, 0]
    tagged = out.got[1][1]
    assert tagged.origin.place(3).record.offset == 5
    assert tagged.data.schema.field("_rate_limited").type == pa.bool_()


def test_two_stages_that_tag_are_refused() -> None:
    data = pa.record_batch({"_rate_limited": [True]})
    clash = Batch(data, (Span(PARTITION, 0, 1),), Tally(read=1), Ack(lambda: None))
    with pytest.raises(ConfigError) as refused:
        fed(made(rows_per_second=3, on_excess="tag"), clash)
    assert str(refused.value) == (
        "rate_limit: the rows have a column '_rate_limited' already; rename it before rate_limit, or leave out one "
        "of two stages that tag"
    )


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.int64())])
@pytest.mark.parametrize("on_excess", ["drop", "tag", "delay"])
def test_columns_of_any_type_pass(kind: pa.DataType, on_excess: str) -> None:
    data = pa.record_batch({"c": pa.nulls(5, kind)})
    sent = Batch(data, (Span(PARTITION, 0, 5),), Tally(read=5), Ack(lambda: None))
    out = fed(made(("dropped",), rows_per_second=3, on_excess=on_excess), sent)
    assert out.got[0][1].data.schema.field("c").type == kind
    assert out.got[0][1].data.num_rows == (3 if on_excess == "drop" else 5)


def test_rows_without_columns_are_counted() -> None:
    data = pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([])))
    sent = Batch(data, (Span(PARTITION, 0, 5),), Tally(read=5), Ack(lambda: None))
    assert fed(made(rows_per_second=3, on_excess="drop"), sent).got[0][1].data.num_rows == 3
    assert fed(made(bytes_per_second=3, on_excess="drop"), sent).got[0][1].data.num_rows == 5, "they take no bytes"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "needs rows_per_second, bytes_per_second or both"),
        ({"rows_per_second": 0}, "greater than 0"),
        ({"rows_per_second": float("inf")}, "finite"),
        ({"bytes_per_second": 0}, "greater than or equal to 1"),
        ({"rows_per_second": 1, "burst": "0s"}, "greater than 0"),
        ({"rows_per_second": 1, "burst": 5}, "a duration needs a unit"),
        ({"rows_per_second": 1, "on_excess": "wait"}, "'delay', 'drop' or 'tag'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(**options)
    assert sentence in str(refused.value)


def test_it_is_never_shared() -> None:
    assert not RateLimitTransform.is_pure(RateLimitTransform.Config(rows_per_second=1))


def test_in_a_graph_every_row_is_in_one_place_or_the_other(data_dir: Path) -> None:
    world = World(tables={"t": numbered(40)})
    stages = [source(), transform("slower", "rate_limit", rows_per_second=7, on_excess="drop"), sink(), sink("rest")]
    edges = [("in", "slower"), ("slower", "out"), Edge("slower", "rest", output="dropped")]
    outcome = run_now(world, pipeline(stages, edges), data_dir)
    assert not outcome.failed()
    kept, rest = (world.kept("default/p", name) for name in ("out", "rest"))
    assert sorted(row["n"] for row in kept.rows + rest.rows) == list(range(40))
    assert len(kept.rows) >= 7
    assert kept.positions == rest.positions
