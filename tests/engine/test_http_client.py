"""The limits that every HTTP request keeps: size, time, redirects, credentials, certificates, schemes."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import ConfigError, Retryable
from conveyord.engine.http.answers import retry_after_seconds
from conveyord.engine.http.options import HttpConfig, http_mistakes
from conveyord.engine.http.trust import trusting
from conveyord.runtime.http_client import HttpClient, HttpLimits, shown
from tests.engine.http_rig import HANG, RESET, Answer, Server, made_certificate, one_by_one, said, serving, zipped

SECRET = "hunter2-and-more"
CREDENTIALS = {"authorization": f"Bearer {SECRET}", "x-key": "another-key"}


@asynccontextmanager
async def client_of(home: str, *, body_bytes_max: int = 4096, ca_file: Path | None = None, **more: Any) -> Any:
    seconds = {"connect_seconds": 10.0, "read_seconds": 30.0, "total_seconds": 60.0, **more}
    limits = HttpLimits(body_bytes_max=body_bytes_max, **seconds)
    trust = trusting(ca_file and str(ca_file), option="ca_file")
    client = HttpClient(home, limits=limits, credentials=CREDENTIALS, trust=trust)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def asked(server: Server, **more: Any) -> AsyncIterator[Any]:
    async with client_of(server.url(), **more) as client:
        yield await client.request("GET", server.url("/a?key=k"))


async def test_an_answer_comes_whole_with_the_credentials_sent_and_no_other_baggage() -> None:
    with serving(lambda _: said({"a": 1}, set_cookie="c=1; Path=/")) as server:
        async with client_of(server.url()) as client:
            for _ in range(2):
                reply = await client.request("GET", server.url("/a?key=k"), headers={"if-none-match": "e"})
    assert (reply.status, reply.body, reply.address) == (200, b'{"a": 1}', server.url("/a"))
    request = server.asked[1]
    assert {name: request.headers[name] for name in CREDENTIALS} == CREDENTIALS
    assert request.headers["accept-encoding"] == "gzip"
    assert request.headers["if-none-match"] == "e"
    assert "cookie" not in request.headers


# -------------------------------------------------------------------- size


@pytest.mark.parametrize("answer", [Answer(body=b"x" * 4097), zipped(b"x" * 4097)])
async def test_an_answer_beyond_the_limit_is_refused(answer: Answer) -> None:
    with serving(lambda _: answer) as server, pytest.raises(ConfigError, match=r"larger than max_body \(4.00 KiB\)"):
        async with asked(server):
            pass


@pytest.mark.parametrize("answer", [Answer(body=b"x" * 4096), zipped(b"x" * 4096), zipped(b""), Answer()])
async def test_an_answer_up_to_the_limit_is_taken(answer: Answer) -> None:
    with serving(lambda _: answer) as server:
        async with asked(server) as reply:
            assert len(reply.body) in (0, 4096)


async def test_a_zip_bomb_is_inflated_to_the_limit_and_not_a_byte_further(monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[int] = []
    make = zlib.decompressobj

    class Watched:
        unused_data = b""

        def __init__(self, *arguments: int) -> None:
            self._real = make(*arguments)

        def decompress(self, chunk: bytes, most: int) -> bytes:
            found = self._real.decompress(chunk, most)
            inflated.append(len(found))
            return found

    monkeypatch.setattr("conveyord.runtime.http_client.zlib.decompressobj", Watched)
    with serving(lambda _: zipped(bytes(50_000_000))) as server, pytest.raises(ConfigError, match="max_body"):
        async with asked(server):
            pass
    assert sum(inflated) == 4097


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(body=zipped(b"abc" * 100).body[:-9], headers={"content-encoding": "gzip"}), "ends early"),
        (Answer(body=b"not gzip at all", headers={"content-encoding": "gzip"}), "is damaged"),
        (Answer(body=zipped(b"a").body + b"more", headers={"content-encoding": "gzip"}), "something behind the end"),
        (Answer(body=b"abc", length=10), "the connection failed"),
    ],
)
async def test_a_damaged_answer_may_be_better_next_time(answer: Answer, message: str) -> None:
    with serving(lambda _: answer) as server, pytest.raises(Retryable, match=message):
        async with asked(server):
            pass


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate"])
async def test_an_encoding_that_was_not_offered_is_refused(encoding: str) -> None:
    answer = Answer(body=b"x", headers={"content-encoding": encoding})
    with serving(lambda _: answer) as server, pytest.raises(ConfigError, match="only gzip was offered"):
        async with asked(server):
            pass


# -------------------------------------------------------------------- time and connections


async def test_a_server_that_says_nothing_is_left_after_the_read_timeout(autojump_clock: MockClock) -> None:
    with serving(lambda _: HANG) as server, pytest.raises(Retryable, match="nothing more came for 30 s"):
        async with asked(server):
            pass


async def test_the_whole_request_has_a_deadline(autojump_clock: MockClock) -> None:
    with serving(lambda _: HANG) as server, pytest.raises(Retryable, match="no whole answer within 20 s"):
        async with asked(server, total_seconds=20.0):
            pass


async def test_a_server_that_does_not_accept_is_left_after_the_connect_timeout(autojump_clock: MockClock) -> None:
    async with client_of("http://127.0.0.1:9/") as client:
        listener = trio.socket.socket()
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        crowd = [trio.socket.socket() for _ in range(4)]  # fills the queue of the listener, who never accepts
        for one in crowd:
            with trio.move_on_after(1):
                await one.connect(listener.getsockname())
        with pytest.raises(Retryable, match="no connection within 10 s"):
            await client.request("GET", url)
        for one in (*crowd, listener):
            one.close()


async def test_a_broken_connection_may_work_next_time() -> None:
    with (
        serving(lambda _: RESET) as server,
        pytest.raises(Retryable, match=r"/a: the connection failed \(.+\); check url and whether it runs"),
    ):
        async with asked(server):
            pass


async def test_nobody_listens() -> None:
    with serving(lambda _: Answer()) as server:
        url = server.url()
    async with client_of(url) as client:
        with pytest.raises(Retryable, match="the connection failed"):
            await client.request("GET", url)


async def test_proxies_of_the_environment_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(lambda _: Answer(body=b"x")) as server:
        async with asked(server) as reply:
            assert reply.body == b"x"


# -------------------------------------------------------------------- redirects


def moved(to: str, status: int = 302) -> Answer:
    return Answer(status, headers={"location": to})


async def test_redirects_are_followed_three_times() -> None:
    with serving(one_by_one(moved("/1"), moved("2"), moved("/3?x=1"), said(7))) as server:
        async with asked(server) as reply:
            assert reply.body == b"7"
    assert [request.path for request in server.asked] == ["/a", "/1", "/2", "/3"]


async def test_the_fourth_redirect_is_an_error() -> None:
    with serving(lambda _: moved("/again")) as server, pytest.raises(ConfigError, match="/a: more than 3 redirects"):
        async with asked(server):
            pass
    assert len(server.asked) == 4


async def test_another_host_gets_no_credentials() -> None:
    with serving(lambda _: said("other")) as other:
        elsewhere = f"http://localhost:{other.port}/b"
        with serving(lambda _: moved(elsewhere)) as server:
            async with asked(server) as reply:
                assert reply.body == b'"other"'
    assert "authorization" in server.asked[0].headers
    assert not {*CREDENTIALS} & {*other.asked[0].headers}


async def test_another_port_of_the_same_host_gets_no_credentials_either() -> None:
    with serving(lambda _: said("other")) as other, serving(lambda _: moved(other.url("/b"))) as server:
        async with asked(server):
            pass
    assert not {*CREDENTIALS} & {*other.asked[0].headers}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "data:,x"])
async def test_a_redirect_to_another_scheme_is_refused(target: str) -> None:
    with serving(lambda _: moved(target)) as server, pytest.raises(ConfigError, match="only http:// and https://"):
        async with asked(server):
            pass


@pytest.mark.parametrize(("status", "followed"), [(301, False), (302, False), (303, False), (307, True), (308, True)])
async def test_a_request_with_a_body_is_redirected_only_whole(status: int, followed: bool) -> None:
    with serving(one_by_one(moved("/new?key=k", status), said(1))) as server:
        async with client_of(server.url()) as client:
            if followed:
                await client.request("POST", server.url(), content=b"rows")
                assert [(each.method, each.body) for each in server.asked] == [("POST", b"rows")] * 2
            else:
                with pytest.raises(
                    ConfigError, match=f"answers {status}, a redirect that would drop the rows"
                ) as error:
                    await client.request("POST", server.url(), content=b"rows")
                assert "key=k" not in str(error.value)


# -------------------------------------------------------------------- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made_certificate(tmp_path_factory.mktemp("tls"))


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: tuple[Path, Path]) -> None:
    with serving(lambda _: said(1), certificate=certificate) as server:
        with pytest.raises(ConfigError, match="its certificate is not trusted .*; name the certificate .* as ca_file"):
            async with asked(server):
                pass
        assert server.asked == []


async def test_a_certificate_named_as_ca_file_is_trusted(certificate: tuple[Path, Path]) -> None:
    with serving(lambda _: said(1), certificate=certificate) as server:
        async with asked(server, ca_file=certificate[0]) as reply:
            assert reply.body == b"1"


async def test_the_name_in_the_certificate_must_be_right(certificate: tuple[Path, Path]) -> None:
    with serving(lambda _: said(1), certificate=certificate) as server:
        async with client_of(server.url(), ca_file=certificate[0]) as client:
            with pytest.raises(ConfigError, match="not trusted"):
                await client.request("GET", f"https://localhost:{server.port}/")


async def test_a_redirect_from_https_to_http_is_refused(certificate: tuple[Path, Path]) -> None:
    with (
        serving(lambda _: said(1)) as plain,
        serving(lambda _: moved(plain.url("/x?key=k")), certificate=certificate) as server,
        pytest.raises(ConfigError, match="leads from https to http") as error,
    ):
        async with asked(server, ca_file=certificate[0]):
            pass
    assert plain.asked == []
    assert "key=k" not in str(error.value)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"^registry\.ca_file \S*ca.pem: cannot be read as certificates in PEM form"):
        trusting(str(path), option="registry.ca_file")


# -------------------------------------------------------------------- addresses, secrets, headers

BAD_URLS = {
    "ftp://example.org/x": "must begin with http:// or https://",
    "file:///etc/passwd": "must begin with http:// or https://",
    "example.org/x": "must begin with http:// or https://",
    "http:///x": "name a host",
    "http://a:b@example.org/": "holds a user or a password",
    "https://example.org/#top": "ends in a fragment",
    "http://example.org:abc/": "not an address",
    "http://[::1/": "not an address",
}


@pytest.mark.parametrize(("url", "message"), BAD_URLS.items())
def test_an_address_that_cannot_be_asked_is_a_mistake(url: str, message: str) -> None:
    assert message in http_mistakes(HttpConfig(url=url))["url"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/", "http://a:b@example.org/", "http://"])
async def test_the_client_itself_refuses_it_too(url: str) -> None:
    async with client_of("http://127.0.0.1:9/") as client:
        with pytest.raises(ConfigError) as error:
            await client.request("GET", url)
    assert "a:b" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("bad name", "not the name of a header"), ("", "not the name"), ("Host", "is set by conveyord itself")],
)
def test_a_header_that_cannot_be_sent_is_a_mistake(name: str, message: str) -> None:
    assert message in http_mistakes(HttpConfig(url="http://a/", headers={name: "x"}))["headers", name]


def test_an_address_is_shown_without_what_may_be_secret() -> None:
    assert shown("https://user:word@example.org:8443/a/b?key=1#x") == "https://example.org:8443/a/b"
    assert shown("http://[::1]:80/a") == "http://[::1]:80/a"
    assert shown("http://[::1/?key=1") == "an address that is none"


async def test_what_a_server_echoes_is_quoted_without_the_credentials() -> None:
    text = f"you sent Bearer {SECRET}\nand\0 {SECRET} and another-key " + "x" * 500
    with serving(lambda _: Answer(400, text.encode())) as server:
        async with client_of(server.url()) as client:
            excerpt = client.excerpt(await client.request("GET", server.url()))
    assert excerpt.startswith("you sent *** and *** and *** xxx")
    assert excerpt.endswith("x...")
    assert len(excerpt) == 203


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("86400", 60.0),
        ("9" * 400, 60.0),
        ("Thu, 01 Jan 1970 00:00:30 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 60.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date_and_cut_to_a_minute(text: str, seconds: float) -> None:
    assert retry_after_seconds(text, now_seconds=10.0) == seconds


@pytest.fixture(autouse=True)
def _no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(0)
    yield
    assert SECRET not in caplog.text
    assert "key=k" not in caplog.text
