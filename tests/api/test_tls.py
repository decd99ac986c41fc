"""HTTPS: the certificate is shown, renewed ones as well, and what does not speak TLS ends alone."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import httpx
import pytest
import trio

from conveyord.core.errors import ConfigError
from conveyord.runtime.http_tls import ServerCertificate
from tests.api.rig import WAIT_SECONDS, Served, serving
from tests.runtime.rpc.node_certificates import NodeAuthority


def issued(directory: Path, authority: str) -> Path:
    """Files for `localhost` at fixed places; returns the certificate of the authority."""
    made = NodeAuthority(directory, authority)
    files = made.issue("localhost", is_uri=False)
    shutil.copy(files.key, directory / "server.key")
    shutil.copy(files.certificate, directory / "server.pem")
    return made.path


async def alive(node: Served, authority: Path) -> str:
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the authority of tests has no key identifiers
    async with httpx.AsyncClient(verify=context) as client:
        return (await client.get(node.url.replace("127.0.0.1", "localhost") + "/livez")).text


async def test_a_renewed_certificate_is_shown_and_a_broken_one_is_not_taken(tmp_path: Path) -> None:
    first = issued(tmp_path, "first")
    certificate = ServerCertificate(tmp_path / "server.pem", tmp_path / "server.key")
    async with serving(tmp_path / "node", access="tokens", tls=certificate.context) as node:
        assert await alive(node, first) == "alive\n"
        (tmp_path / "server.pem").write_text("broken")
        assert await alive(node, first) == "alive\n"
        (tmp_path / "server.pem").unlink()
        assert await alive(node, first) == "alive\n"
        second = issued(tmp_path, "second")
        assert await alive(node, second) == "alive\n"
        with pytest.raises(httpx.ConnectError):
            await alive(node, first)
        reply = await node.ask("GET", "/status")
        assert reply.status_code == 200


async def test_what_does_not_speak_tls_ends_alone(tmp_path: Path) -> None:
    authority = issued(tmp_path, "first")
    certificate = ServerCertificate(tmp_path / "server.pem", tmp_path / "server.key")
    async with serving(tmp_path / "node", tls=certificate.context) as node:
        for sent in (b"GET /livez HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b""):
            stream = await trio.open_tcp_stream("127.0.0.1", int(node.url.rpartition(":")[2]))
            async with stream:
                await stream.send_all(sent)
                await stream.send_eof()
                with trio.fail_after(WAIT_SECONDS):
                    try:
                        async for data in stream:
                            assert b"alive" not in data
                    except trio.BrokenResourceError:
                        pass
        assert await alive(node, authority) == "alive\n"


async def test_a_query_that_waits_is_answered_and_its_connection_goes_on_or_gives_up_its_place(tmp_path: Path) -> None:
    """It is looked whether the client is there, while the answer is waited for: no byte of it may be lost by that."""
    issued(tmp_path, "first")
    certificate = ServerCertificate(tmp_path / "server.pem", tmp_path / "server.key")
    async with serving(tmp_path / "node", tls=certificate.context) as node:
        index = (await node.ask("PUT", "/config/a", json={"value": ""})).json()["index"]
        query = f"{node.url}/api/v1/config/a?wait_seconds=600&after="
        only_one = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(verify=False, timeout=WAIT_SECONDS, limits=only_one) as client:
            for _ in range(5):
                async with trio.open_nursery() as nursery:

                    async def wait(index: int) -> None:
                        reply = await client.get(f"{query}{index}")
                        assert reply.json()["entry"]["changed"] > index
                        assert (await client.get(f"{node.url}/livez")).text == "alive\n"

                    nursery.start_soon(wait, index)
                    await node.waited_for(1)
                    index = (await node.ask("PUT", "/config/a", json={"value": ""})).json()["index"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.http.get, f"{query}{index}")
            await node.waited_for(1)
            nursery.cancel_scope.cancel()
        with trio.fail_after(WAIT_SECONDS):
            while node.service.context.waiting.borrowed_tokens:
                await trio.sleep(0.01)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.pem: No such file"):
        ServerCertificate(tmp_path / "server.pem", None)
    (tmp_path / "server.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match="no certificate and its key"):
        ServerCertificate(tmp_path / "server.pem", None)
