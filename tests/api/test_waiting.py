"""Queries that wait for a change, and watchers: nothing is missed, nothing comes twice, what is gone is told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import trio

from conveyord.api.context import WAITING_MAX
from conveyord.core.errors import Retryable
from tests.api.rig import WAIT_SECONDS, Served, serving

WRITES = 60


def value(data: bytes) -> dict[str, str]:
    return {"value": base64.b64encode(data).decode()}


async def put(node: Served, key: str, data: bytes = b"") -> dict[str, Any]:
    reply = await node.ask("PUT", f"/config/{key}", json=value(data))
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def get(node: Served, path: str, **params: object) -> dict[str, Any]:
    reply = await node.ask("GET", path, params={name: str(one) for name, one in params.items()})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_a_query_that_waits_is_answered_by_the_change(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        first = await put(node, "a", b"1")
        answers = []

        async def wait() -> None:
            answers.append(await get(node, "/config/a", after=first["index"], wait_seconds=600))

        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(wait)
                await node.waited_for(5)
                second = await put(node, "a", b"2")
        assert {one["entry"]["changed"] for one in answers} == {second["changed"]}


async def test_a_query_that_waits_is_answered_when_the_time_is_over_or_the_change_is_there_already(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as node:
        first = await put(node, "a", b"1")
        at_once = await get(node, "/config/a", after=first["index"] - 1, wait_seconds=600)
        assert at_once["entry"]["changed"] == first["changed"]
        later = await get(node, "/config", after=first["index"], wait_seconds=0.05)
        assert [one["key"] for one in later["entries"]] == ["a"]


async def test_draining_ends_what_waits_with_an_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        first = await put(node, "a", b"1")
        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                answers = []

                async def wait() -> None:
                    answers.append(await get(node, "/config/a", after=first["index"], wait_seconds=600))

                nursery.start_soon(wait)
                await node.waited_for(1)
                node.stop.set()
        assert answers[0]["entry"]["changed"] == first["changed"]


async def test_no_more_than_so_many_queries_wait(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        waiting = node.service.context.waiting
        for number in range(WAITING_MAX):
            waiting.acquire_on_behalf_of_nowait(number)
        reply = await node.ask("GET", "/config", params={"after": "99", "wait_seconds": "600"})
        assert (reply.status_code, reply.json()["code"]) == (429, "TOO_MANY_REQUESTS")
        assert reply.headers["retry-after"] == "1"
        for number in range(WAITING_MAX):
            waiting.release_on_behalf_of(number)


async def followed(node: Served, cursor: dict[str, Any], last: int) -> list[dict[str, Any]]:
    """All events behind a cursor up to an index, by asking again and again."""
    events: list[dict[str, Any]] = []
    while cursor["through"] < last:
        cursor = await get(
            node,
            "/events",
            after=cursor["through"],
            history=cursor["history"],
            topics="config",
            wait_seconds=60,
            limit=7,
        )
        events += cursor["events"]
    return events


async def test_watchers_miss_nothing_while_others_write(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        start = await get(node, "/events", after=0, topics="config")
        keys: list[str] = []
        last: list[int] = []
        followers: list[list[dict[str, Any]]] = []

        async def write(task: int) -> None:
            for number in range(WRITES // 3):
                keys.append(f"{task}/{number}")
                last.append((await put(node, keys[-1], keys[-1].encode()))["index"])

        async def follow() -> None:
            followers.append(await followed(node, start, max(last)))

        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                for task in range(3):
                    nursery.start_soon(write, task)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(follow)
                nursery.start_soon(write, 3)
        for events in followers:
            seen = [(event["index"], event["number"]) for event in events]
            assert seen == sorted(set(seen))
            told = {event["key"]: base64.b64decode(event["value"]).decode() for event in events}
            assert told.items() >= {key: key for key in keys if not key.startswith("3/")}.items()


async def test_what_is_not_kept_any_more_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reply = await node.ask("PUT", "/settings/events_max", json={"value": 16})
        assert reply.status_code == 200, reply.text
        for number in range(40):
            await put(node, f"k{number}")
        gone = await node.ask("GET", "/events", params={"after": "0", "topics": "config"})
        assert (gone.status_code, gone.json()["code"]) == (410, "COMPACTED")
        index = gone.json()["index"]
        assert gone.headers["conveyord-index"] == str(index)
        kept = await get(node, "/events", after=gone.json()["oldest"], history=gone.json()["history"], topics="config")
        assert kept["events"]
        after = await get(node, "/events", after=index, topics="config")
        assert after["events"] == []


async def test_a_cursor_of_another_history_and_a_topic_that_there_is_not_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for params in ({"after": "999999"}, {"after": "0", "history": "another"}):
            reply = await node.ask("GET", "/events", params=params)
            assert (reply.status_code, reply.json()["code"]) == (409, "BEHIND")
        reply = await node.ask("GET", "/events", params={"after": "0", "topics": "config,nonsense"})
        assert (reply.status_code, reply.json()["field"]) == (422, "topics")


async def test_waiting_needs_a_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        context = node.service.context
        node.stop.set()
        with pytest.raises(Retryable), trio.fail_after(WAIT_SECONDS):
            while True:
                await context.cluster.wait_beyond(("config",), 10**9, seconds=0.01)


async def test_who_leaves_while_waiting_gives_up_its_place(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        first = await put(node, "a", b"1")
        where = f"after={first['index']}&wait_seconds=600"
        with trio.fail_after(WAIT_SECONDS):
            for path in (f"/config/a?{where}", f"/events?{where}&topics=config"):
                asking = await trio.open_tcp_stream("127.0.0.1", int(node.url.rpartition(":")[2]))
                await asking.send_all(f"GET /api/v1{path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
                await node.waited_for(1)
                await asking.aclose()
                while node.service.context.waiting.borrowed_tokens:
                    await trio.sleep(0.01)


async def test_who_sends_on_while_waiting_is_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        first = await put(node, "a", b"1")
        asking = await trio.open_tcp_stream("127.0.0.1", int(node.url.rpartition(":")[2]))
        head = "HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        waits = f"GET /api/v1/config/a?after={first['index']}&wait_seconds=600 {head}\r\n"
        async with asking:
            await asking.send_all(waits.encode())
            await node.waited_for(1)
            await asking.send_all(f"GET /livez {head}connection: close\r\n\r\n".encode())
            second = await put(node, "a", b"2")
            said = b""
            with trio.fail_after(WAIT_SECONDS):
                async for data in asking:
                    said += data
        waited, _, alive = said.removeprefix(b"HTTP/1.1 200 ").partition(b"HTTP/1.1 200 ")
        assert f'etag: "{second["changed"]}"'.encode() in waited
        assert alive.endswith(b"alive\n")
