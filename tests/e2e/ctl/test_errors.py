"""What is said where something is in the way, each as a file in golden/errors. The servers here are no nodes."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.ctl.calling import Said, ctl, real
from tests.e2e.ctl.golden_files import as_text, check, same
from tests.e2e.ctl.servers import Behaviour, http, read_head, saying, serving
from tests.runtime.rpc.node_certificates import NodeAuthority

PROBLEM, JSON, HTML = "application/problem+json", "application/json", "text/html"
MIB = 1024 * 1024


def problem(status: str, code: str, detail: str) -> bytes:
    number = int(status.partition(" ")[0])
    body = {"type": "about:blank", "title": "T", "status": number, "code": code, "detail": detail}
    return http(status, PROBLEM, json.dumps(body).encode())


def never(connected: socket.socket) -> None:
    """Take a request, and say nothing until the caller has gone."""
    read_head(connected)
    while connected.recv(65_536):
        pass


def dripping(connected: socket.socket) -> None:
    """Say a little now and then, for ever: no single wait is ever long."""
    read_head(connected)
    connected.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connected.sendall(b"x-more: 1\r\n" if time.monotonic() else b"")
        time.sleep(0.05)


def endless(connected: socket.socket) -> None:
    """An answer beyond all measure."""
    read_head(connected)
    connected.sendall(http("200 OK", JSON, b"", length=1024 * MIB))
    for _ in range(80):
        connected.sendall(b" " * MIB)


def bad_request(connected: socket.socket) -> None:
    """What a server of HTTP says to a handshake of TLS."""
    connected.recv(65_536)
    connected.sendall(http("400 Bad Request", HTML, b"<html>"))


READS: dict[str, Behaviour] = {
    "html": saying(http("200 OK", HTML, b"<html>a printer</html>")),
    "html-404": saying(http("404 Not Found", HTML, b"<html>")),
    "other-json": saying(http("200 OK", JSON, b'{"hello": "world"}')),
    "broken-json": saying(http("200 OK", JSON, b'{"index": 1, "node": ')),
    "broken-problem": saying(http("500 Oops", PROBLEM, b"<html>")),
    "redirect": saying(http("301 Moved", HTML, b"", "location: https://elsewhere/\x1b[31m")),
    "no-http": saying(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "nothing": saying(b""),
    "cut-body": saying(http("200 OK", JSON, b'{"index": 1', length=4_000)),
    "cut-chunks": saying(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n40\r\n{"
    ),
    "endless": endless,
    "gateway-502": saying(http("502 Bad Gateway", HTML, b"<html>nginx</html>")),
    "gateway-503": saying(http("503 Service Unavailable", HTML, b"<html>nginx</html>")),
    "unauthenticated": saying(problem("401 Unauthorized", "UNAUTHENTICATED", "no token came with the request")),
    "forbidden": saying(problem("403 Forbidden", "FORBIDDEN", "a viewer may not do that; it takes an admin")),
    "unavailable": saying(problem("503 Service Unavailable", "UNAVAILABLE", "no leader is known; waiting for one")),
    "invalid": saying(problem("400 Bad Request", "INVALID", "'a b' is no key")),
    "escapes": saying(problem("409 Conflict", "CONFLICT", "\x1b]0;owned\x07\x1b[2Jall is well\r\nerror: no")),
    "long-detail": saying(problem("409 Conflict", "CONFLICT", "x" * 100_000)),
}


@pytest.mark.parametrize("name", READS)
def test_a_read_is_answered_by(name: str, tmp_path: Path) -> None:
    with serving(READS[name]) as address:
        arguments = ["status", "--server", f"http://{address}"]
        said = ctl(tmp_path, *arguments)
    compare(f"read-{name}", arguments, said)


def test_a_token_that_is_refused_is_not_waited_with(tmp_path: Path) -> None:
    """It stays refused; but for the one of a data directory, which a node that starts writes anew."""
    with serving(READS["unauthenticated"]) as address:
        arguments = ["status", "--wait", "1h", "--token", "cvd_unknown", "--server", f"http://{address}"]
        said = ctl(tmp_path, *arguments)
        compare("waited-unauthenticated", arguments, said)
        said = ctl(tmp_path, "status", "--wait", "300ms", "--server", f"http://{address}")
    assert said.code == 124


WRITES: dict[str, Behaviour] = {
    "nothing": saying(b""),
    "cut-body": READS["cut-body"],
    "gateway-502": READS["gateway-502"],
    "gateway-503": READS["gateway-503"],
    "gateway-504": saying(http("504 Gateway Timeout", HTML, b"<html>nginx</html>")),
    "outcome-unknown": saying(problem("504 Gateway Timeout", "OUTCOME_UNKNOWN", "the leader went away meanwhile")),
    "deadline": saying(problem("504 Gateway Timeout", "DEADLINE", "no answer of the leader in time")),
    "unavailable": READS["unavailable"],
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_answered_by(name: str, tmp_path: Path) -> None:
    with serving(WRITES[name]) as address:
        arguments = ["config", "put", "a/b", "1", "--server", f"http://{address}"]
        said = ctl(tmp_path, *arguments)
    compare(f"write-{name}", arguments, said)


@pytest.mark.parametrize("behaviour", [never, dripping], ids=lambda one: one.__name__)
@pytest.mark.parametrize("verb", ["status", "config put a/b 1"], ids=["read", "write"])
def test_no_answer_in_time_ends_with_124(behaviour: Behaviour, verb: str, tmp_path: Path) -> None:
    with serving(behaviour) as address:
        arguments = [*verb.split(), "--server", f"http://{address}", "--timeout", "300ms"]
        said = ctl(tmp_path, *arguments)
    assert said.code == 124
    compare(f"{verb.partition(' ')[0]}-{behaviour.__name__}", arguments, said)


def test_a_port_where_nothing_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"
    arguments = ["status", "--server", f"http://{address}"]
    compare("refused", arguments, ctl(tmp_path, *arguments))


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_data_directory_without_a_node(name: str, tmp_path: Path) -> None:
    arguments = ["status", "--data-dir", name]
    compare(f"no-node-in-{'here' if name == '.' else name}", arguments, ctl(tmp_path, *arguments))


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    arguments = ["status", "--server", "https://no-such-host.invalid:7480"]
    compare("unknown-name", arguments, ctl(tmp_path, *arguments))


USAGE = {
    "no-scheme": "status --server node-1:7480",
    "other-scheme": "status --server ftp://node-1:7480",
    "bad-port": "status --server http://node-1:99999",
    "with-query": "status --server http://node-1:7480/?a=b",
    "with-api": "status --server http://node-1:7480/api/v1",
    "password": "status --server http://me:secret@node-1:7480",
    "clear-text": "status --server http://10.0.0.5:7480 --token cvd_a_secret",
    "bad-token": "status --token 'cvd a'",
    "no-variable": "status --token env:NO_SUCH_TOKEN",
    "no-file": "status --token file:nowhere",
    "no-ca": "status --server https://127.0.0.1:7480 --ca nowhere.pem",
    "ca-of-nothing": "status --server https://127.0.0.1:7480 --ca empty.pem",
    "unknown-context": "status --context prod",
    "local-token-elsewhere": "status --data-dir . --server https://10.0.0.5:7480",
    "bad-timeout": "status --timeout 30",
    "long-wait": "members list --wait 1h",
    "after-without-wait": "members list --after 3",
    "all-and-wait": "status --all --wait 1s",
    "no-value": "config put a/b",
    "two-values": "config put a/b 1 --file empty.pem",
    "large-value": "config put a/b --file large",
    "value-of-no-file": "config put a/b --file nowhere",
    "unconfirmed": "members remove n-1",
    "bad-role": "tokens create me --role king",
    "bad-expiry": "tokens create me --role viewer --expires 20y",
    "long-expiry": "tokens create me --role viewer --expires 4000d",
    "empty-key": "config put '' a",
    "empty-node": "members remove '' --yes",
    "empty-context": "status --context ''",
    "empty-token": "status --token ''",
    "empty-data-dir": "status --data-dir ''",
    "unknown-verb": "member list",
    "unknown-topic": "events --topic weather",
    "bad-index": "config delete a/b --expect-index -1",
}


@pytest.mark.parametrize("name", USAGE)
def test_a_command_line_that_cannot_work_ends_with_2(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    (tmp_path / "large").write_bytes(bytes(256 * 1024 + 1))
    arguments = [part.strip("'") for part in USAGE[name].replace("'cvd a'", "cvd\xa0a").split(" ")]
    said = ctl(tmp_path, *arguments)
    assert said.code == 2, said
    assert "secret" not in said.err
    check(f"errors/usage-{name}", same(as_text(arguments, said), {str(tmp_path): "HOME"}))


def test_one_reader_of_a_json_error_gets_code_and_message(tmp_path: Path) -> None:
    with serving(READS["forbidden"]) as address:
        said = ctl(tmp_path, "members", "list", "--server", f"http://{address}", "-o", "json")
    assert json.loads(said.out) == {"error": {"code": "FORBIDDEN", "message": said.sentence}}


# -------------------------------------------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: Path) -> NodeAuthority:
    return NodeAuthority(tmp_path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize(
    "name", ["not-trusted", "other-name", "expired", "not-yet", "no-tls", "no-tls-wanted", "trusted"]
)
def test_a_certificate_that_is(name: str, authority: NodeAuthority, tmp_path: Path, stack: ExitStack) -> None:
    ages = {"expired": dt.timedelta(days=5), "not-yet": dt.timedelta(days=-5)}
    host = "elsewhere" if name == "other-name" else "localhost"
    files = authority.issue(host, is_uri=False, age=ages.get(name, dt.timedelta()))
    context = None if name == "no-tls" else server_context(files.certificate, files.key)
    behaviour = bad_request if name == "no-tls" else READS["forbidden"]
    port = stack.enter_context(serving(behaviour, tls=context)).rpartition(":")[2]
    scheme = "http" if name == "no-tls-wanted" else "https"
    trusted = () if name == "not-trusted" else ("--ca", authority.path)
    arguments = ["status", "--server", f"{scheme}://localhost:{port}", *trusted]
    said = ctl(tmp_path, *arguments)
    shown = as_text(["status", "--server", f"{scheme}://localhost:#####"], said).replace(port, "#####")
    check(f"errors/tls-{name}", same(shown, {str(tmp_path): "HOME"}))


# ------------------------------------------------------------------------------------------- several servers


def test_the_next_server_is_asked_where_one_cannot_be_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with serving(READS["forbidden"]) as address:
        said = ctl(tmp_path, "status", "--server", dead, "--server", f"http://{address}")
    assert said.sentence.startswith("a viewer may not do that")


@pytest.mark.parametrize("verb", ["status", "config put a/b 1"])
def test_where_no_server_can_do_it_each_is_told(verb: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        dead = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with serving(READS["unavailable"]) as address:
        arguments = [*verb.split(), "--server", dead, "--server", f"http://{address}"]
        compare(f"{verb.partition(' ')[0]}-no-server", arguments, ctl(tmp_path, *arguments))


def test_a_read_that_was_cut_is_asked_of_the_next(tmp_path: Path) -> None:
    with serving(READS["cut-body"]) as first, serving(READS["forbidden"]) as second:
        said = ctl(tmp_path, "status", "--server", f"http://{first}", "--server", f"http://{second}")
    assert said.sentence.startswith("a viewer may not do that")


@pytest.mark.parametrize("name", ["nothing", "cut-body", "gateway-502", "gateway-504", "outcome-unknown", "deadline"])
def test_a_write_whose_outcome_is_not_known_is_asked_of_nobody_else(name: str, tmp_path: Path) -> None:
    asked = list[bytes]()

    def second(connected: socket.socket) -> None:
        asked.append(read_head(connected))

    with serving(WRITES[name]) as first, serving(second) as other:
        said = ctl(tmp_path, "config", "put", "a/b", "1", "--server", f"http://{first}", "--server", f"http://{other}")
    assert said.code == 1
    assert asked == []


def test_a_write_that_surely_was_not_done_is_asked_of_the_next(tmp_path: Path) -> None:
    done = saying(http("200 OK", JSON, b'{"index": 7, "changed": 7}'))
    with serving(WRITES["unavailable"]) as first, serving(done) as second:
        said = ctl(tmp_path, "config", "put", "a/b", "1", "--server", f"http://{first}", "--server", f"http://{second}")
    assert (said.code, said.text) == (0, "a/b is written, at index 7\n")


def test_events_go_on_with_the_next_server_when_one_hangs_up_midway(tmp_path: Path) -> None:
    """Not from the start: with the cursor of the page that came."""
    event = {"index": 5, "number": 0, "topic": "config", "key": "a", "kind": "put", "value": "MQ=="}
    page = json.dumps({"index": 9, "through": 5, "history": "h", "events": [event]}).encode()
    last = json.dumps(
        {"index": 9, "through": 9, "history": "h", "events": [{**event, "index": 9, "key": "b"}]}
    ).encode()
    asked = list[str]()

    def behave(connected: socket.socket) -> None:
        asked.append(read_head(connected).decode().split(" ")[1])
        if len(asked) != 2:
            connected.sendall(http("200 OK", JSON, page if len(asked) == 1 else last))

    with serving(behave) as address:
        server = f"http://{address}"
        said = ctl(tmp_path, "events", "--server", server, "--server", server)
    assert said.code == 0
    assert asked[1:] == ["/api/v1/events?after=5&history=h&limit=100"] * 2
    assert [line.split()[-1] for line in said.text.splitlines()] == ["KEY", "a", "b"]
    assert said.err == "go on with: --after 9 --history h\n"


def test_proxies_of_the_environment_are_not_used(tmp_path: Path) -> None:
    with serving(READS["forbidden"]) as address:
        said = real(tmp_path, "status", "--server", f"http://{address}", http_proxy="http://127.0.0.1:1")
    assert said.sentence.startswith("a viewer may not do that")


def compare(name: str, arguments: list[str], said: Said) -> None:
    check(f"errors/{name}", same(as_text(arguments, said)))
