"""Mutual TLS over real sockets: who may, who may not and is told why, and new certificates without a restart."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import ssl
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from conveyord.core.errors import ConfigError, Retryable
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Side
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import TlsContexts, TlsFiles, node_names
from tests.runtime.rpc.node_certificates import DAY, NodeAuthority
from tests.runtime.rpc.rpc_rig import serving, side
from tests.runtime.rpc.test_calls import answering


@pytest.fixture
def authority(tmp_path: Path) -> NodeAuthority:
    return NodeAuthority(tmp_path)


async def refused(ours: Side, tls: TlsContexts | None, address: tuple[str, int], **more: object) -> Unwelcome:
    with pytest.raises(Unwelcome) as caught:
        async with dial_once(ours, address, tls=tls, **more):  # type: ignore[arg-type]
            pass
    return caught.value


async def all_refused(theirs: Side) -> dict[str, int]:
    """What the server counted, once it has."""
    with trio.fail_after(30):
        while not theirs.counters.refused_connections and not theirs.counters.refused_frames:
            await trio.sleep(0.01)
    return dict(theirs.counters.refused_connections)


@pytest.mark.parametrize("is_uri", [True, False])
async def test_both_sides_know_each_other_by_their_certificates(authority: NodeAuthority, is_uri: bool) -> None:
    theirs = side("b", answering()[0])
    async with serving(theirs, TlsContexts(authority.issue("b", is_uri=is_uri))) as (server, address):
        ours = TlsContexts(authority.issue("a", is_uri=is_uri))
        async with dial_once(side("a"), address, tls=ours, expects="b") as connection:
            body = os.urandom(700_000)
            answer = await connection.call("echo", b"payload", body, deadline_seconds=30)
            assert (answer.payload, bytes(answer.body)) == (b"payload", body)
            assert connection.remote.names == {"b"}
            [accepted] = server.connections
            assert accepted.remote.names == {"a"}
            assert accepted.remote.admission.role == "member"
    assert not theirs.counters.refused_connections


async def test_many_calls_both_ways_over_tls(authority: NodeAuthority) -> None:
    theirs = side("b", answering()[0])
    ours = TlsContexts(authority.issue("a"))
    async with (
        serving(theirs, TlsContexts(authority.issue("b"))) as (server, address),
        dial_once(side("a", answering()[0]), address, tls=ours) as connection,
        trio.open_nursery() as nursery,
    ):
        [accepted] = server.connections

        async def ask(number: int) -> None:
            asked = connection if number % 2 else accepted
            body = bytes([number % 256]) * (number * 100)
            answer = await asked.call("echo", b"%d" % number, body, deadline_seconds=60)
            assert (answer.payload, bytes(answer.body)) == (b"%d" % number, body)

        for number in range(400):
            nursery.start_soon(ask, number)


async def test_a_certificate_of_another_authority_is_refused_with_a_sentence(
    authority: NodeAuthority, tmp_path: Path
) -> None:
    other = NodeAuthority(tmp_path, "strangers")
    theirs = side("b")
    async with serving(theirs, TlsContexts(authority.issue("b"))) as (_, address):
        # It believes our authority, but has a certificate of its own.
        stranger = TlsContexts(other.issue("a", ca=authority.path))
        refusal = await refused(side("a"), stranger, address)
        assert refusal.code == "TLS_UNKNOWN_CA"
        assert "it says that our certificate is not signed by its authority" in str(refusal)
        assert await all_refused(theirs) == {"tls_unknown_ca": 1}


async def test_a_server_of_another_authority_is_refused_by_the_client(authority: NodeAuthority, tmp_path: Path) -> None:
    other = NodeAuthority(tmp_path, "strangers")
    theirs, ours = side("b"), side("a")
    async with serving(theirs, TlsContexts(other.issue("b"))) as (_, address):
        refusal = await refused(ours, TlsContexts(authority.issue("a")), address)
        assert "its certificate is not signed by our authority" in str(refusal)
        assert ours.counters.refused_connections == {"tls_unknown_ca": 1}
        assert await all_refused(theirs) == {"tls_unknown_ca": 1}


async def test_an_expired_certificate_is_refused_on_either_side(authority: NodeAuthority) -> None:
    theirs = side("b")
    old = 10 * DAY
    async with serving(theirs, TlsContexts(authority.issue("b"))) as (_, address):
        refusal = await refused(side("a"), TlsContexts(authority.issue("a", age=old)), address)
        assert refusal.code == "TLS_EXPIRED"
        assert "it says that our certificate has expired" in str(refusal)
        assert await all_refused(theirs) == {"tls_expired": 1}
    theirs, ours = side("b"), side("a")
    async with serving(theirs, TlsContexts(authority.issue("b", age=old))) as (_, address):
        refusal = await refused(ours, TlsContexts(authority.issue("a")), address)
        assert "its certificate has expired" in str(refusal)
        assert ours.counters.refused_connections == {"tls_expired": 1}


async def test_a_certificate_that_is_not_valid_yet_is_refused(authority: NodeAuthority) -> None:
    async with serving(side("b"), TlsContexts(authority.issue("b"))) as (_, address):
        with pytest.raises((Unwelcome, Retryable)):
            early = TlsContexts(authority.issue("a", age=-dt.timedelta(days=9)))
            async with dial_once(side("a"), address, tls=early):
                pass


async def test_a_node_that_lies_about_its_id_is_refused_and_told(authority: NodeAuthority) -> None:
    theirs = side("b")
    async with serving(theirs, TlsContexts(authority.issue("b"))) as (_, address):
        refusal = await refused(side("c"), TlsContexts(authority.issue("a")), address)
        assert refusal.code == "LYING_ID"
        assert "says that it is node 'c', but its certificate names a" in str(refusal)
        assert await all_refused(theirs) == {"lying_id": 1}


async def test_a_server_that_lies_about_its_id_is_refused(authority: NodeAuthority) -> None:
    ours = side("a")
    async with serving(side("c"), TlsContexts(authority.issue("b"))) as (_, address):
        refusal = await refused(ours, TlsContexts(authority.issue("a")), address, expects="c")
        assert "says that it is node 'c', but its certificate names b" in str(refusal)
        assert ours.counters.refused_connections == {"lying_id": 1}


async def test_a_client_without_a_node_id_may_have_any_certificate(authority: NodeAuthority) -> None:
    theirs = TlsContexts(authority.issue("b"))
    operator = TlsContexts(authority.issue("operator"))
    async with (
        serving(side("b", answering()[0]), theirs) as (_, address),
        dial_once(side(""), address, tls=operator) as connection,
    ):
        assert (await connection.call("echo", b"on", deadline_seconds=30)).payload == b"on"


async def test_one_side_without_tls_is_told_or_counted(authority: NodeAuthority) -> None:
    theirs = side("b")
    async with serving(theirs, TlsContexts(authority.issue("b"))) as (_, address):
        with pytest.raises((Retryable, Unwelcome, Exception)):
            async with dial_once(side("a"), address):
                pass
        assert await all_refused(theirs) == {"tls_plain": 1}
    theirs = side("b")
    async with serving(theirs) as (_, address):
        refusal = await refused(side("a"), TlsContexts(authority.issue("a")), address)
        assert refusal.code == "TLS_PLAIN"
        await all_refused(theirs)
        assert theirs.counters.refused_frames == {"magic": 1}


async def test_no_certificate_is_refused(authority: NodeAuthority) -> None:
    theirs = side("b")
    async with serving(theirs, TlsContexts(authority.issue("b"))) as (_, address):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def connect() -> None:
            with socket.create_connection(address) as bare, context.wrap_socket(bare) as encrypted:
                encrypted.sendall(b"x")
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    assert encrypted.recv(1) == b""

        await trio.to_thread.run_sync(connect)
        assert await all_refused(theirs) == {"tls_no_certificate": 1}


async def test_new_certificates_are_taken_without_a_restart(authority: NodeAuthority) -> None:
    ours = TlsContexts(authority.issue("a"))
    contexts = TlsContexts(authority.issue("b", age=10 * DAY))
    async with serving(side("b", answering()[0]), contexts) as (_, address):
        assert (await refused(side("a"), ours, address)).code == "TLS_EXPIRED"
        authority.issue("b")
        async with dial_once(side("a"), address, tls=ours) as connection:
            renewed = authority.issue("b").certificate.read_bytes()
            assert renewed
            async with dial_once(side("a"), address, tls=ours) as second:
                await second.call("echo", deadline_seconds=30)
            assert (await connection.call("echo", b"on", deadline_seconds=30)).payload == b"on"


async def test_files_that_are_half_written_do_not_replace_the_ones_before(authority: NodeAuthority) -> None:
    files = authority.issue("b")
    contexts = TlsContexts(files)
    ours = TlsContexts(authority.issue("a"))
    async with serving(side("b"), contexts) as (_, address):
        files.certificate.write_text("-----BEGIN CERT")
        with structlog.testing.capture_logs() as logs:
            async with dial_once(side("a"), address, tls=ours):
                pass
        assert any("cannot be used" in line["event"] for line in logs)
        files.key.unlink()
        async with dial_once(side("a"), address, tls=ours):
            pass


def test_files_that_are_not_there_or_do_not_belong_together_are_told(authority: NodeAuthority, tmp_path: Path) -> None:
    a, b = authority.issue("a"), authority.issue("b")
    with pytest.raises(ConfigError, match="no certificate and its key"):
        TlsContexts(TlsFiles(a.certificate, b.key, a.ca))
    with pytest.raises(ConfigError, match="needed for TLS"):
        TlsContexts(TlsFiles(a.certificate, tmp_path / "gone", a.ca))
    with pytest.raises(ConfigError, match="holds no certificate of an authority"):
        TlsContexts(TlsFiles(a.certificate, a.key, a.key))


def test_names_of_a_certificate() -> None:
    uris = (("DNS", "host.example"), ("URI", "conveyord://node/n1"), ("URI", "https://else"))
    assert node_names({"subjectAltName": uris}) == {"n1"}
    assert node_names({"subjectAltName": (("DNS", "n2"), ("URI", "https://else"))}) == {"n2"}
    assert node_names(None) == node_names({}) == frozenset()
