"""Many requests: memory does not grow, and whatever leadership does, each change is answered by what became of it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import trio

from tests.api.rig import WAIT_SECONDS, Served, cluster, serving

REQUESTS = 10_000
GROWTH_BYTES_MAX = 8 * 1024 * 1024
REQUEST = b"GET /api/v1/%s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
ANSWERS = (b"config/a", b"config/missing?stale=true", b"config?limit=ten", b"nonsense/%d", b"status")


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def load(node: Served, count: int, *, keeps: bool) -> None:
    """Requests of all sorts. keeps: on one connection, else on one each."""
    port, stream = int(node.url.rpartition(":")[2]), None
    for number in range(count):
        path = ANSWERS[number % len(ANSWERS)]
        if stream is None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(REQUEST % (path % number if b"%" in path else path))
        assert (await stream.receive_some(65_536)).startswith(b"HTTP/1.1 ")
        if not keeps:
            await stream.aclose()
            stream = None
    if stream is not None:
        await stream.aclose()


@pytest.mark.check
async def test_ten_thousand_requests_do_not_grow_memory(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        await node.ask("PUT", "/config/a", json={"value": ""})
        await load(node, 2_000, keeps=True)
        await load(node, 500, keeps=False)
        before = resident_bytes()
        await load(node, REQUESTS, keeps=True)
        await load(node, REQUESTS // 10, keeps=False)
        assert resident_bytes() - before < GROWTH_BYTES_MAX


@pytest.mark.check
async def test_changes_are_answered_whatever_leadership_does(tmp_path: Path) -> None:
    """An answer with 200 is in the state once, one with 503 is not; of one with 504 nothing is known."""
    async with cluster(tmp_path) as nodes:
        answers: dict[str, int] = {}
        is_over = False

        async def write(task: int) -> None:
            node, number = nodes[task % 3], 0
            while not is_over:
                key = f"{task}/{number}"
                reply = await node.ask("PUT", f"/config/{key}", json={"value": "", "expect_index": 0})
                assert reply.status_code in {200, 503, 504}, reply.text
                answers[key] = reply.status_code
                number += 1

        async def ask_of_leader(node: Served) -> None:
            while not is_over:
                reply = await node.ask("POST", f"/members/{nodes[0].node.identity.node}/promote")
                assert reply.status_code in {200, 409, 503, 504}, reply.text

        with trio.fail_after(10 * WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                for task in range(6):
                    nursery.start_soon(write, task)
                nursery.start_soon(ask_of_leader, nodes[1])
                for _ in range(10):
                    reply = await nodes[2].ask("POST", "/leader/transfer")
                    assert reply.status_code in {200, 503, 504}, reply.text
                is_over = True
        found = set[str]()
        behind, more = "", True
        while more:
            page = (await nodes[0].ask("GET", "/config", params={"behind": behind, "limit": "1000"})).json()
            found |= {entry["key"] for entry in page["entries"]}
            behind, more = max(found), page["more"]
        assert {key for key, status in answers.items() if status == 200} <= found
        assert not {key for key, status in answers.items() if status == 503} & found
        assert sum(status == 200 for status in answers.values()) > 50
