"""Tokens: made, used, revoked, expired; what is refused, counted and logged; and that no secret is told twice."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from conveyord.api.access import LOCAL_FILE
from conveyord.api.token_text import is_secret, new_token, parts_of
from conveyord.core.errors import ConfigError
from conveyord.runtime.http_server import Declined, Head
from tests.api.rig import Served, serving

WAIT_SECONDS = 30.0


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def made(node: Served, role: str, **options: Any) -> tuple[str, str]:
    """The id and the text of a new token."""
    reply = await node.ask("POST", "/tokens", json={"name": f"of a {role}", "role": role, **options})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"], reply.json()["token"]


async def until(node: Served, token: str, status: int) -> dict[str, Any]:
    """Wait until a token is answered so; nodes follow the tokens, which takes a moment."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            reply = await node.http.get("/api/v1/status", headers=bearer(token))
            if reply.status_code == status:
                found: dict[str, Any] = reply.json()
                return found
            await trio.sleep(0.01)


async def test_a_token_lives_from_the_local_one_until_it_is_revoked_and_deleted(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        id_, text = await made(node, "admin")
        _, other = await made(node, "admin")
        listed = (await node.http.get("/api/v1/tokens", headers=bearer(text))).json()["tokens"]
        assert {one["state"] for one in listed} == {"usable"}
        assert text.rpartition("_")[2] not in str(listed)

        revoked = await node.http.post(f"/api/v1/tokens/{id_}/revoke", headers=bearer(other))
        assert revoked.status_code == 200, revoked.text
        refused = await node.http.get("/api/v1/status", headers=bearer(text))
        assert (refused.status_code, refused.json()["code"]) == (401, "TOKEN_REVOKED")
        deleted = await node.http.delete(f"/api/v1/tokens/{id_}", headers=bearer(other))
        assert deleted.status_code == 200, deleted.text
        with trio.fail_after(WAIT_SECONDS):
            while (await until(node, text, 401))["code"] != "UNAUTHENTICATED":
                await trio.sleep(0.01)
        audit = (await node.ask("GET", "/audit")).json()["entries"]
        actors = [(one["operation"], one["actor"], one["code"]) for one in audit if one["target"] == id_]
        admin = parts_of(other)
        assert admin is not None
        assert actors == [
            ("token.delete", admin.id, "OK"),
            ("token.revoke", admin.id, "OK"),
            ("token.create", "local", "OK"),
        ]


async def test_a_token_expires(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        reply = await node.ask("POST", "/tokens", json={"name": "short", "role": "viewer", "expires_seconds": 0.3})
        assert (await until(node, reply.json()["token"], 401)) is not None
        with trio.fail_after(WAIT_SECONDS):
            while (await until(node, reply.json()["token"], 401))["code"] != "TOKEN_EXPIRED":
                await trio.sleep(0.01)


async def test_a_role_may_do_what_it_may(tmp_path: Path) -> None:
    asks = {
        "GET": ("/status", None),
        "PUT": ("/config/a", {"value": ""}),
        "POST": ("/tokens", {"name": "another", "role": "viewer"}),
    }
    async with serving(tmp_path, access="tokens") as node:
        for role, allowed in (("viewer", ["GET"]), ("operator", ["GET", "PUT"]), ("admin", ["GET", "PUT", "POST"])):
            _, text = await made(node, role)
            for method, (path, body) in asks.items():
                reply = await node.http.request(method, f"/api/v1{path}", headers=bearer(text), json=body)
                if method in allowed:
                    assert reply.status_code == 200, reply.text
                else:
                    assert (reply.status_code, reply.json()["code"]) == (403, "FORBIDDEN")
                    assert reply.json()["detail"].count(role) == 1, reply.text


UNKNOWN: list[tuple[dict[str, str], str]] = [
    ({}, "no token came along"),
    ({"authorization": "Basic YTpi"}, "of another kind"),
    ({"authorization": "Bearer nonsense"}, "is no token"),
    (bearer(new_token("abc").text), "is not known here"),
    (bearer(new_token("local").text), "of an earlier start"),
]


async def test_who_is_not_known_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        with structlog.testing.capture_logs() as logs:
            for headers, said in UNKNOWN:
                reply = await node.http.get("/api/v1/status", headers=headers)
                assert (reply.status_code, reply.json()["code"]) == (401, "UNAUTHENTICATED")
                assert said in reply.json()["detail"]
                assert reply.headers["www-authenticate"] == 'Bearer realm="conveyord"'
        assert 1 <= [line["event"] for line in logs].count("a token was not accepted") < len(UNKNOWN)
        for headers, _ in UNKNOWN:
            assert headers.get("authorization", "_nothing").rpartition("_")[2] not in str(logs)
        metrics = (await node.http.get("/metrics", headers=node.local)).text
        assert f'conveyord_api_refused_tokens_total{{code="UNAUTHENTICATED"}} {len(UNKNOWN)}.0' in metrics


async def test_the_local_token_is_for_the_owner_of_the_data_and_for_one_start(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        path = tmp_path / LOCAL_FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        first = node.local
        assert (await node.ask("GET", "/status")).status_code == 200
    async with serving(tmp_path, access="tokens") as node:
        assert (await node.http.get("/api/v1/status", headers=first)).status_code == 401
        assert (await node.ask("GET", "/status")).status_code == 200


async def test_pages_and_health_need_no_token_and_figures_do(tmp_path: Path) -> None:
    async with serving(tmp_path, access="tokens") as node:
        for path in ("/", "/docs", "/docs/swagger-ui.css", "/livez", "/readyz", "/api/v1/openapi.json"):
            assert (await node.http.get(path)).status_code == 200, path
        assert (await node.http.get("/metrics")).status_code == 401
    async with serving(tmp_path, access="tokens", are_metrics_open=True) as node:
        assert (await node.http.get("/metrics")).status_code == 200


HOST = {"host": "127.0.0.1:7480"}


WAYS: list[tuple[str, dict[str, Any], str | None]] = [
    ("tokens", {"peer": "192.0.2.7", "headers": bearer("x")}, "TLS_REQUIRED"),
    ("tokens", {"peer": "", "headers": bearer("x")}, "TLS_REQUIRED"),
    ("tokens", {"peer": "192.0.2.7", "headers": bearer("x"), "is_encrypted": True}, "UNAUTHENTICATED"),
    ("tokens", {"peer": "::ffff:127.0.0.1", "headers": bearer("x")}, "UNAUTHENTICATED"),
    ("tokens", {"peer": "::1", "headers": bearer("x")}, "UNAUTHENTICATED"),
    ("open", {"peer": "127.0.0.1", "headers": {"host": "evil.example:7480"}}, "MISDIRECTED"),
    ("open", {"peer": "127.0.0.1", "headers": {}}, "MISDIRECTED"),
    ("open", {"peer": "127.0.0.1", "headers": HOST | {"origin": "https://evil.example"}}, "FORBIDDEN"),
    ("open", {"peer": "127.0.0.1", "headers": HOST | {"origin": "http://127.0.0.1:7480"}}, None),
    ("open", {"peer": "127.0.0.1", "headers": HOST | {"host": "localhost:7480"}}, None),
    ("open", {"peer": "127.0.0.1", "headers": HOST | {"authorization": "Basic YTpi"}}, None),
]


@pytest.mark.parametrize("access", ["open", "tokens"])
async def test_the_way_that_a_request_takes_is_looked_at(tmp_path: Path, access: str) -> None:
    async with serving(tmp_path, access=access) as node:
        for of, options, code in WAYS:
            head = Head("GET", "/api/v1/status", **options)
            if of == access and code is None:
                node.service.site.admit(head)
            elif of == access:
                with pytest.raises(Declined) as caught:
                    node.service.site.admit(head)
                assert f'"code": "{code}"'.encode() in caught.value.answer.body, options


async def test_open_access_is_for_loopback_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as node:
        outside = await trio.open_tcp_listeners(0, host="0.0.0.0")
        with pytest.raises(ConfigError, match='access is open; write access = "tokens"'):
            type(node.service)(node.node, node.service.settings, outside)
        for listener in outside:
            await listener.aclose()


def test_a_secret_is_known_by_its_hash_alone() -> None:
    made = new_token()
    parts = parts_of(made.text)
    assert parts is not None
    assert parts.id == made.id
    assert is_secret(parts.secret, made.salt, made.hash)
    assert not is_secret(parts.secret[:-1] + ("A" if parts.secret[-1] != "A" else "B"), made.salt, made.hash)
    assert parts.secret.encode() not in made.hash + made.salt
    assert len({new_token().text for _ in range(100)}) == 100
