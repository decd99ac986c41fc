"""Calls and one-way messages over a connection in memory, with a clock that jumps."""

from __future__ import annotations

import pytest
import structlog
import trio
import trio.testing

from conveyord.core.errors import OutcomeUnknown, Refused, Retryable
from conveyord.runtime.rpc.handlers import Answer, Handlers, Incoming
from conveyord.runtime.rpc.limits import Limits
from conveyord.runtime.rpc.outcomes import DeadlineOver, RemoteError
from tests.runtime.rpc.rpc_rig import LIMITS, pair, side


def answering() -> tuple[Handlers, dict[str, list[object]]]:
    seen: dict[str, list[object]] = {"began": [], "ended": [], "messages": []}
    handlers = Handlers()

    def echo(incoming: Incoming) -> Answer:
        return Answer(incoming.payload, incoming.body)

    async def echo_later(incoming: Incoming) -> Answer:
        await trio.sleep(1)
        return Answer(incoming.payload, incoming.body)

    async def sleep(incoming: Incoming) -> None:
        seen["began"].append(incoming.deadline - trio.current_time())
        try:
            await trio.sleep_forever()
        finally:
            seen["ended"].append(trio.current_time())

    def refuse(incoming: Incoming) -> None:
        raise Refused("the table was rolled back")

    async def break_off(incoming: Incoming) -> None:
        raise KeyError("secret of the node")

    async def large(incoming: Incoming) -> bytes:
        return bytes(int(incoming.payload))

    handlers.inline("echo", echo)
    handlers.unary("echo.later", echo_later)
    handlers.unary("sleep", sleep)
    handlers.inline("refuse", refuse)
    handlers.unary("break", break_off)
    handlers.unary("large", large)
    handlers.inline("note", lambda incoming: seen["messages"].append(incoming.payload))
    return handlers, seen


@pytest.mark.parametrize("method", ["echo", "echo.later"])
@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
async def test_a_call_is_answered_with_payload_and_attachment(
    method: str, size: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        answer = await both.here.call(method, b"payload", body, deadline_seconds=5)
        assert (answer.payload, bytes(answer.body)) == (b"payload", body)
        assert both.here.open_calls == both.there.open_requests == 0


async def test_both_sides_ask_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(side("a", answering()[0]), side("b", answering()[0])) as both:
        answers: list[tuple[str, bytes]] = []

        async def ask(name: str, number: int) -> None:
            connection = both.here if name == "here" else both.there
            payload = f"{name} {number}".encode()
            method = "echo" if number % 3 else "echo.later"
            assert (await connection.call(method, payload, deadline_seconds=5)).payload == payload
            answers.append((name, payload))

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(ask, "here", number)
                nursery.start_soon(ask, "there", number)
        assert len(answers) == 600


async def test_a_deadline_travels_and_ends_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        began = trio.current_time()
        with pytest.raises(DeadlineOver, match="sleep was not"):
            await both.here.call("sleep", deadline_seconds=2)
        assert trio.current_time() - began == pytest.approx(2, abs=0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert seen["began"] == [pytest.approx(2, abs=0.01)]
        assert len(seen["ended"]) == 1
        assert both.there.open_requests == 0
        assert (await both.here.call("echo", b"on", deadline_seconds=1)).payload == b"on"


async def test_a_cancelled_call_cancels_its_handler(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        with trio.move_on_after(1):
            await both.here.call("sleep", deadline_seconds=100)
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen["ended"]) == 1
        assert both.there_side.counters.cancelled_calls == {"caller": 1}


async def test_a_call_that_was_not_written_yet_is_withdrawn(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: both.here.call("sleep", deadline_seconds=100))
            nursery.start_soon(lambda: both.here.call("sleep", deadline_seconds=100))
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert both.here.queued_bytes == 0
        assert len(seen["began"]) == len(seen["ended"])


async def test_an_expected_failure_travels_with_its_code_and_class() -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        with pytest.raises(RemoteError, match="the table was rolled back") as caught:
            await both.here.call("refuse", deadline_seconds=5)
        assert caught.value.code == "REFUSED"
        assert isinstance(caught.value, Refused)


async def test_an_unexpected_failure_is_logged_there_and_not_told_here() -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        with structlog.testing.capture_logs() as logs, pytest.raises(RemoteError) as caught:
            await both.here.call("break", deadline_seconds=5)
        assert caught.value.code == "INTERNAL"
        assert "secret" not in str(caught.value)
        assert "secret of the node" in repr(logs[0]["exc_info"])
        assert both.there_side.counters.failed_requests == {"internal": 1}


async def test_an_unknown_method_is_refused_and_counted() -> None:
    async with pair(side("a"), side("b")) as both:
        with pytest.raises(RemoteError, match="no method 'nope'") as caught:
            await both.here.call("nope", deadline_seconds=5)
        assert caught.value.code == "NO_SUCH_METHOD"
        assert both.there_side.counters.refused_requests == {"no_such_method": 1}


async def test_what_is_too_large_is_refused_before_it_is_sent() -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        with pytest.raises(Refused, match="more than the other side takes"):
            await both.here.call("echo", b"", bytes(LIMITS.frame_bytes_max), deadline_seconds=5)
        with pytest.raises(Refused, match="more than the other side takes"):
            both.here.send("note", bytes(LIMITS.frame_bytes_max))
        with pytest.raises(RemoteError, match="more than the other side takes"):
            await both.here.call("large", str(LIMITS.frame_bytes_max).encode(), deadline_seconds=5)
        assert (await both.here.call("echo", b"on", deadline_seconds=5)).payload == b"on"


async def test_a_broken_connection_tells_whether_the_request_was_sent(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        failures: dict[bytes, type[Exception]] = {}

        async def ask(payload: bytes) -> None:
            try:
                await both.here.call("sleep", payload, deadline_seconds=1000)
            except (Retryable, OutcomeUnknown) as error:
                failures[payload] = type(error)

        async def never(_: memoryview) -> int:
            await trio.sleep_forever()
            return 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, b"sent")
            await trio.testing.wait_all_tasks_blocked()
            both.here._transport.send_some = never  # type: ignore[method-assign]
            nursery.start_soon(ask, b"perhaps in part")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, b"queued behind it")
            await trio.testing.wait_all_tasks_blocked()
            both.here.cut("broken", "the cable was pulled")
        assert failures == {b"sent": OutcomeUnknown, b"perhaps in part": OutcomeUnknown, b"queued behind it": Retryable}
        with pytest.raises(Retryable, match="the connection is gone"):
            await both.here.call("echo", deadline_seconds=1)
        assert both.here.send("note", b"") is False
    assert len(seen["began"]) == len(seen["ended"]) == 1
    assert both.here_side.counters.dropped_messages == {"closed": 1}


async def test_messages_come_in_order_and_are_dropped_when_the_queue_is_full() -> None:
    handlers, seen = answering()
    limits = Limits(
        frame_bytes_max=100_000,
        queued_bytes_max=400_000,
        messages_bytes_max=50_000,
        stall_seconds=1000,
        pong_seconds=1000,
    )
    async with pair(side("a", limits=limits), side("b", handlers)) as both:
        sent = [number for number in range(100) if both.here.send("note", b"%05d" % number + bytes(1000))]
        assert 40 < len(sent) < 60
        assert both.here_side.counters.dropped_messages == {"queue_full": 100 - len(sent)}
        await trio.testing.wait_all_tasks_blocked()
        assert [int(payload[:5]) for payload in seen["messages"]] == sent
        assert both.here.send("nobody takes this", b"")
        await trio.testing.wait_all_tasks_blocked()
        assert both.there_side.counters.dropped_messages == {"no_such_method": 1}


async def test_a_message_may_be_taken_by_a_task_and_its_failure_harms_nobody() -> None:
    with structlog.testing.capture_logs():
        async with pair(side("a"), side("b", answering()[0])) as both:
            for method in ("break", "refuse"):
                assert both.here.send(method, b"")
            await trio.testing.wait_all_tasks_blocked()
            assert both.there_side.counters.failed_requests == {"internal": 1, "refused": 1}
            assert both.there.open_requests == 0
            assert (await both.here.call("echo", b"on", deadline_seconds=5)).payload == b"on"


async def test_closing_writes_what_is_queued_and_says_why(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        for number in range(50):
            both.here.send("note", b"%d" % number)
        await both.here.close("shutdown", "the node stops for an upgrade")
        await trio.testing.wait_all_tasks_blocked()
        assert len(seen["messages"]) == 50
        assert both.there.ending is not None
        assert "the node stops for an upgrade" in both.there.ending.message


async def test_closing_answers_what_was_asked_but_waits_for_nothing_that_has_no_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    handlers, seen = answering()
    async with pair(side("a"), side("b", handlers)) as both:
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append((await both.here.call("echo.later", b"in time", deadline_seconds=50)).payload)

        async def ask_for_ever() -> None:
            with pytest.raises(OutcomeUnknown, match="the node stops"):
                await both.here.call("sleep", deadline_seconds=1000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask_for_ever)
            await trio.sleep(0.5)
            began = trio.current_time()
            await both.there.close()
        assert answers == [b"in time"]
        assert trio.current_time() - began == pytest.approx(LIMITS.stall_seconds, abs=3)
        assert len(seen["ended"]) == 1
