"""REST over a real node: what is taken, what is refused and how, versions, sizes, times."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import trio

from conveyord.api.codes import STATUSES
from conveyord.api.handlers.table import HANDLERS
from conveyord.api.operations import OPERATIONS
from conveyord.api.service import LIMITS
from conveyord.core.state import replies
from tests.api.rig import WAIT_SECONDS, Served, serving

JSON = {"content-type": "application/json"}
LATIN = {"content-type": "application/json; charset=latin-1"}
GZIP = {"content-encoding": "gzip"}


def test_each_operation_has_a_handler() -> None:
    assert set(HANDLERS) == set(OPERATIONS)


def test_each_operation_has_a_path_of_its_own() -> None:
    assert len({(one.method, one.path) for one in OPERATIONS}) == len(OPERATIONS)
    assert len({one.name for one in OPERATIONS}) == len(OPERATIONS)


def test_each_code_of_the_state_has_a_status() -> None:
    codes = {value for name, value in vars(replies).items() if name.isupper() and isinstance(value, str)}
    assert codes <= STATUSES.keys()


async def test_entries_are_written_read_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        value = base64.b64encode(b"hello \xff").decode()
        put = await node.ask("PUT", "/config/a/b", json={"value": value})
        assert put.status_code == 200, put.text
        got = await node.ask("GET", "/config/a/b")
        assert got.json()["entry"]["value"] == value
        assert got.headers["etag"] == f'"{put.json()["changed"]}"'
        assert int(got.headers["conveyord-index"]) == got.json()["index"] >= put.json()["index"]
        gone = await node.ask("DELETE", "/config/a/b", params={"expect_index": put.json()["changed"]})
        assert gone.status_code == 200, gone.text
        missing = await node.ask("GET", "/config/a/b")
        assert missing.status_code == 404
        assert missing.headers["content-type"] == "application/problem+json"
        assert missing.json()["code"] == "NOT_FOUND"
        assert missing.json()["instance"] == "/api/v1/config/a/b"


async def test_pages_of_entries_follow_one_another(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        keys = [f"page/{number}" for number in range(5)]
        for key in [*keys, "other"]:
            await node.ask("PUT", f"/config/{key}", json={"value": ""})
        found, behind, more = [], "", True
        while more:
            params = {"prefix": "page/", "behind": behind, "limit": "2", "values": "true"}
            page = (await node.ask("GET", "/config", params=params)).json()
            found += [entry["key"] for entry in page["entries"]]
            assert all(entry["value"] == "" for entry in page["entries"])
            behind, more = found[-1], page["more"]
        assert found == keys


async def test_versions_are_told_and_expected_in_the_words_of_http(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        new = {"if-none-match": "*"}
        first = await node.ask("PUT", "/config/a", json={"value": ""}, headers=new)
        assert first.status_code == 200, first.text
        again = await node.ask("PUT", "/config/a", json={"value": ""}, headers=new)
        assert (again.status_code, again.json()["code"]) == (412, "PRECONDITION_FAILED")
        same = {"if-match": first.headers["etag"]}
        assert (await node.ask("PUT", "/config/a", json={"value": "aGk="}, headers=same)).status_code == 200
        assert (await node.ask("DELETE", "/config/a", headers=same)).status_code == 412
        conflict = await node.ask("PUT", "/config/a", json={"value": "", "expect_index": 0})
        assert (conflict.status_code, conflict.json()["code"]) == (409, "CONFLICT")


REFUSED: list[tuple[str, str, dict[str, Any], int, str, str | None]] = [
    ("GET", "/config?limit=0", {}, 400, "MALFORMED_REQUEST", "limit"),
    ("GET", "/config?limit=ten", {}, 400, "MALFORMED_REQUEST", "limit"),
    ("GET", "/config?limit=1e2", {}, 400, "MALFORMED_REQUEST", "limit"),
    ("GET", "/config?limit=1&limit=2", {}, 400, "MALFORMED_REQUEST", "limit"),
    ("GET", "/config?values=yes", {}, 400, "MALFORMED_REQUEST", "values"),
    ("GET", "/config?values", {}, 400, "MALFORMED_REQUEST", "values"),
    ("GET", "/config?after=null", {}, 400, "MALFORMED_REQUEST", "after"),
    ("GET", "/config?after=-1", {}, 400, "MALFORMED_REQUEST", "after"),
    ("GET", f"/config?after={2**63}", {}, 400, "MALFORMED_REQUEST", "after"),
    ("GET", "/config?wait_seconds=601", {}, 400, "MALFORMED_REQUEST", "wait_seconds"),
    ("GET", "/config?wait_seconds=nan", {}, 400, "MALFORMED_REQUEST", "wait_seconds"),
    ("GET", "/config?nonsense=1", {}, 400, "MALFORMED_REQUEST", "nonsense"),
    ("GET", "/config?prefix=%zz", {}, 400, "MALFORMED_REQUEST", "prefix"),
    ("GET", "/config?prefix=%ff", {}, 400, "MALFORMED_REQUEST", "prefix"),
    ("GET", "/config/a%2", {}, 400, "MALFORMED_REQUEST", "key"),
    ("GET", "/config/a%20b", {}, 422, "INVALID", "key"),
    ("GET", "/config/a?key=b", {}, 400, "MALFORMED_REQUEST", "key"),
    ("DELETE", "/config/a?expect_index=x", {}, 400, "MALFORMED_REQUEST", "expect_index"),
    ("PUT", "/config/a?value=", {"json": {"value": ""}}, 400, "MALFORMED_REQUEST", "value="),
    ("PUT", "/config/a", {}, 400, "MALFORMED_REQUEST", "value"),
    ("PUT", "/config/a", {"json": {}}, 400, "MALFORMED_REQUEST", "value"),
    ("PUT", "/config/a", {"json": []}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"json": {"value": "%"}}, 400, "MALFORMED_REQUEST", "value"),
    ("PUT", "/config/a", {"json": {"value": "", "key": "b"}}, 400, "MALFORMED_REQUEST", "key"),
    ("PUT", "/config/a", {"json": {"value": "", "more": 1}}, 400, "MALFORMED_REQUEST", "more"),
    ("PUT", "/config/a", {"json": {"value": "", "expect_index": 2**63}}, 400, "MALFORMED_REQUEST", "expect_index"),
    ("PUT", "/config/a", {"content": b"{", "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b'{"value": "\xff"}', "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b'{"value": NaN}', "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b'{"value": "", "value": ""}', "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b'{"value": "\\ud800"}', "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b"[" * 100_000, "headers": JSON}, 400, "MALFORMED_REQUEST", "body"),
    ("PUT", "/config/a", {"content": b"{}"}, 415, "UNSUPPORTED_MEDIA_TYPE", None),
    ("PUT", "/config/a", {"content": b"{}", "headers": JSON | LATIN}, 415, "UNSUPPORTED_MEDIA_TYPE", None),
    ("PUT", "/config/a", {"content": b"{}", "headers": JSON | GZIP}, 415, "UNSUPPORTED_MEDIA_TYPE", None),
    ("PUT", "/config/a", {"data": {"value": ""}}, 415, "UNSUPPORTED_MEDIA_TYPE", None),
    ("PUT", "/config/a b", {"json": {"value": ""}}, 422, "INVALID", None),
    ("PUT", "/config/%2e", {"json": {"value": ""}}, 422, "INVALID", "key"),
    ("PUT", "/config/a/%2E%2e/b", {"json": {"value": ""}}, 422, "INVALID", "key"),
    ("PUT", "/config/a", {"json": {"value": "A" * 360_000}}, 422, "INVALID", None),
    ("PUT", "/config/a", {"json": {"value": ""}, "headers": {"if-match": "42"}}, 400, "MALFORMED_REQUEST", "If-Match"),
    ("PUT", "/config/a", {"json": {"value": ""}, "headers": {"if-match": "*"}}, 400, "MALFORMED_REQUEST", "If-Match"),
    (
        "PUT",
        "/config/a",
        {"json": {"value": ""}, "headers": {"if-none-match": '"1"'}},
        400,
        "MALFORMED_REQUEST",
        "If-None-Match",
    ),
    (
        "PUT",
        "/config/a",
        {"json": {"value": "", "expect_index": 1}, "headers": {"if-match": '"1"'}},
        400,
        "MALFORMED_REQUEST",
        "If-Match",
    ),
    ("POST", "/tokens", {"json": {"name": "a", "role": "god"}}, 400, "MALFORMED_REQUEST", "role"),
    ("POST", "/tokens", {"json": {"name": "", "role": "viewer"}}, 422, "INVALID", None),
    ("POST", "/tokens/unknown/revoke", {}, 404, "NOT_FOUND", None),
    ("PUT", "/settings/nonsense", {"json": {"value": 1}}, 422, "INVALID", None),
    ("PUT", "/settings/target_voters", {"json": {"value": 2}}, 422, "INVALID", None),
    ("GET", "/members/unknown", {}, 404, "NOT_FOUND", "node"),
    ("DELETE", "/members/unknown", {}, 404, "NOT_FOUND", "node"),
    ("POST", "/members/unknown/promote", {}, 404, "NOT_FOUND", "node"),
    ("POST", "/members", {"json": {"address": "nonsense"}}, 422, "INVALID", "address"),
    ("POST", "/backups", {"json": {"store": "ftp://x"}}, 422, "CONFIG", None),
    ("POST", "/backups/cleanup", {"json": {"store": "file:///x", "keep": 0}}, 400, "MALFORMED_REQUEST", "keep"),
    ("GET", "/confg", {}, 404, "NO_SUCH_PATH", None),
    ("GET", "/config/", {}, 404, "NO_SUCH_PATH", None),
    ("POST", "/config", {}, 405, "METHOD_NOT_ALLOWED", None),
    ("PATCH", "/config/a", {}, 405, "METHOD_NOT_ALLOWED", None),
]


async def test_what_is_refused_and_how(tmp_path: Path) -> None:
    """One node for all of them: none leaves anything behind."""
    async with serving(tmp_path) as node:
        for method, path, options, status, code, field in REFUSED:
            reply = await node.ask(method, path, **options)
            found = reply.json()
            told = (reply.status_code, found["code"], found.get("field"))
            assert told == (status, code, field), (method, path, options, reply.text)
            assert reply.headers["content-type"] == "application/problem+json"
            assert (found["status"], found["instance"]) == (status, reply.url.raw_path.decode().partition("?")[0])
            assert len(found["detail"]) < 600, found
        assert (await node.ask("GET", "/config")).json()["entries"] == []


async def test_what_is_near_is_named_and_what_is_allowed_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        near = await node.ask("GET", "/statu")
        assert near.json()["detail"] == "there is nothing at /api/v1/statu; did you mean /api/v1/status?"
        far = await node.ask("GET", "/nope")
        assert far.json()["detail"] == "there is nothing at /api/v1/nope; /api/v1/openapi.json says what there is"
        allowed = await node.ask("PATCH", "/config/a")
        assert allowed.headers["allow"] == "DELETE, GET, HEAD, PUT"
        for path in ("/nonsense", "/api/v2/status", "/api/v1", "/api"):
            found = (await node.http.get(path)).json()
            assert (found["code"], found["instance"]) == ("NO_SUCH_PATH", path)
        for path in ("/livez", "/docs", "/metrics", "/api/v1/openapi.json"):
            reply = await node.http.post(path)
            assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD"), path


async def test_head_says_what_get_says_but_for_the_body(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for path in ("/livez", "/readyz", "/docs", "/metrics", "/api/v1/settings", "/api/v1/openapi.json"):
            head, got = await node.http.head(path), await node.http.get(path)
            assert head.status_code == got.status_code == 200, path
            assert head.content == b""
            assert head.headers["content-type"] == got.headers["content-type"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        reply = await node.ask("PUT", "/config/a", content=b"x" * (LIMITS.body_bytes_max + 1), headers=JSON)
        assert (reply.status_code, reply.json()["code"]) == (413, "TOO_LARGE")
        assert reply.json()["instance"] == "/api/v1/config/a"
        reply = await node.ask("GET", "/config", headers={"x": "x" * 40_000})
        assert (reply.status_code, reply.json()["code"]) == (431, "HEAD_TOO_LARGE")


async def said(node: Served, *pieces: bytes) -> bytes:
    """What the node says on a connection on which these pieces come, and nothing more."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(node.url.rpartition(":")[2]))
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
        found = b""
        with trio.fail_after(WAIT_SECONDS):
            async for data in stream:
                found += data
    return found


async def test_who_dawdles_is_cut_off(tmp_path: Path) -> None:
    from dataclasses import replace

    limits = replace(LIMITS, head_seconds=0.1, piece_seconds=0.1, request_seconds=0.2)
    async with serving(tmp_path, limits=limits) as node:
        head = b"PUT /api/v1/config/a HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        assert b" 408 " in await said(node, head)
        assert b'"code": "TOO_SLOW"' in await said(node, head + b"content-length: 10\r\n\r\n{")
        assert await said(node) == b""


async def test_the_index_page_and_swagger_ui_come_from_here_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        for path in ("/", "/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
            page = await node.http.get(path)
            assert page.status_code == 200
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "http" not in policy
            if "html" in page.headers["content-type"]:
                assert "https://" not in page.text
                assert "<script>" not in page.text


async def test_health(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        assert (await node.http.get("/livez")).text == "alive\n"
        assert (await node.http.get("/readyz")).text == "ready\n"
        verbose = (await node.http.get("/readyz?verbose")).text
        assert [line[:4] for line in verbose.splitlines()] == ["[+] "] * 5 + ["read"]


async def test_metrics_tell_of_raft_and_of_what_was_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        await node.ask("GET", "/config/missing")
        await node.ask("GET", "/nonsense")
        text = (await node.http.get("/metrics")).text
        for line in (
            'conveyord_raft_role{role="leader"} 1.0',
            "conveyord_raft_has_leader 1.0",
            'conveyord_node_phase{phase="member"} 1.0',
            "conveyord_disk_well 1.0",
            'conveyord_api_requests_total{code="NOT_FOUND",door="http",operation="config.get"} 1.0',
            'conveyord_api_request_seconds_count{door="http",operation="config.get"} 1.0',
            'conveyord_http_answers_total{operation="config.get",status="404"} 1.0',
            'conveyord_http_answers_total{operation="none",status="404"} 1.0',
        ):
            assert line in text.splitlines(), line


async def test_a_backup_is_made_listed_described_and_removed(tmp_path: Path) -> None:
    async with serving(tmp_path / "node") as node:
        store = f"file://{tmp_path}/backups"
        made = []
        for _ in range(2):
            reply = await node.ask("POST", "/backups", json={"store": store})
            assert reply.status_code == 200, reply.text
            made.append(reply.json()["backup"])
        listed = (await node.ask("GET", "/backups", params={"store": store})).json()["backups"]
        assert listed == made[::-1]
        one = await node.ask("GET", f"/backups/{made[0]['id']}", params={"store": store})
        assert one.json()["backup"] == made[0]
        unknown = await node.ask("GET", "/backups/nonsense", params={"store": store})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "NOT_FOUND")
        gone = await node.ask("POST", "/backups/cleanup", json={"store": store, "keep": 1})
        assert gone.json()["ids"] == [made[0]["id"]]


async def test_a_change_leaves_one_line_in_the_log_and_one_in_the_audit(tmp_path: Path) -> None:
    import structlog

    async with serving(tmp_path) as node:
        with structlog.testing.capture_logs() as logs:
            await node.ask("PUT", "/config/a", json={"value": "c2VjcmV0"})
            await node.ask("DELETE", "/config/b")
        lines = [line for line in logs if line["event"] == "asked for a change"]
        told = [(line["operation"], line["actor"], line["target"], line["code"]) for line in lines]
        assert told == [("config.put", "open", "a", "OK"), ("config.delete", "open", "b", "NOT_FOUND")]
        assert "c2VjcmV0" not in json.dumps(logs, default=str)
        audit = (await node.ask("GET", "/audit", params={"limit": "2"})).json()["entries"]
        assert [(one["operation"], one["actor"], one["target"], one["code"]) for one in audit] == told[::-1]
