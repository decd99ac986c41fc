"""A schema registry with Confluent's interface, asked for schemas by id. Blocking, thread-safe.

A schema under an id never changes, so it is kept for ever (up to so many). That there is none is remembered only for a
moment: one that is registered late is found by those who ask again. Redirects are refused, so credentials go to the
configured addresses alone; proxies and other settings of the environment do not count.
"""

from __future__ import annotations

import base64
import json
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, get_args
from urllib.parse import quote

from conveyord import __version__
from conveyord.core.errors import ConfigError, ConveyordError, RecordError, Retryable
from conveyord.core.units import format_bytes

if TYPE_CHECKING:
    import httpx

SCHEMAS_MAX = 10_000  # kept at a time: more than the registries of large companies hold; then the oldest used goes
MISS_SECONDS = 10.0
"""How long it is remembered that an id is unknown: a topic full of such would ask for each batch."""
SILENCE_SECONDS = 10.0
"""How long an address that did not answer in time is passed over: so an outage is an error after one timeout, however
often a stage tries, and a second address is not kept waiting by the first for each schema.
"""
REFERENCES_MAX = 1_000  # that one schema draws in, at any depth
UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"

SchemaKind = Literal["AVRO", "JSON", "PROTOBUF"]
Key = TypeVar("Key")
Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAccess:
    """urls: without a slash at their ends. trust: whose certificates are believed. authorization: the header's value,
    in clear. timeout_seconds: for one request, and for connecting.
    """

    urls: tuple[str, ...]
    trust: ssl.SSLContext
    authorization: str | None = None
    timeout_seconds: float = 10.0
    answer_bytes_max: int = 4 * 1024 * 1024

    def __repr__(self) -> str:
        return f"RegistryAccess({', '.join(self.urls)})"  # authorization holds a password


@dataclass(frozen=True, slots=True)
class RegisteredSchema:
    """A schema and all that it refers to, at any depth: name and text, each before those that refer to it."""

    kind: SchemaKind
    text: str
    references: tuple[tuple[str, str], ...] = ()


class _Silent(Retryable):
    """There was no whole answer in time."""


def basic_authorization(username: str, password: str) -> str:
    """The header's value for a user and a password."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


class SchemaRegistry:
    """One registry at one or several addresses."""

    def __init__(self, access: RegistryAccess, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Connects to nothing yet. clock: seconds, for misses."""
        import httpx

        logging.getLogger("httpcore").setLevel(logging.INFO)  # below that it logs headers
        self._access = access
        self._clock = clock
        # No connection outlives its request: schemas are few, and so nobody has to close this.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._transport = httpx.HTTPTransport(verify=access.trust, trust_env=False, limits=limits)
        self._asking = Lock()
        self._schemas: _Bounded[int, RegisteredSchema] = _Bounded(SCHEMAS_MAX)
        self._misses: _Bounded[int, float] = _Bounded(SCHEMAS_MAX)
        self._silent: dict[str, tuple[float, str]] = {}
        """By address, until when nobody asks there, and what was said."""

    def schema(self, schema_id: int) -> RegisteredSchema:
        """The schema under an id. One request at a time goes out; what is known is answered at once.

        Raises RecordError (UNKNOWN_SCHEMA) if the registry has none, Retryable if it does not answer, ConfigError if
        it does not let us in or is no registry.
        """
        found = self._schemas.get(schema_id)
        if found is not None:
            return found
        with self._asking:
            found = self._schemas.get(schema_id)  # another thread may have asked meanwhile
            if found is None:
                self._raise_if_missed(schema_id)
                found = self._fetched(schema_id)
                self._schemas.put(schema_id, found)
        return found

    def _raise_if_missed(self, schema_id: int) -> None:
        until = self._misses.get(schema_id)
        if until is not None and self._clock() < until:
            raise self._unknown(f"schema {schema_id}")

    def _fetched(self, schema_id: int) -> RegisteredSchema:
        try:
            answer = self._answer(f"/schemas/ids/{schema_id}", f"schema {schema_id}")
            named: dict[str, str] = {}
            for name, inner in self._references(answer, under=(), seen=set()):
                named.setdefault(name, inner)
        except RecordError:
            self._misses.put(schema_id, self._clock() + MISS_SECONDS)
            raise
        kind, text = answer.get("schemaType") or "AVRO", answer.get("schema")
        if kind not in get_args(SchemaKind) or not isinstance(text, str):
            raise self._no_registry(f"schema {schema_id} is of a type that is not known")
        return RegisteredSchema(cast(SchemaKind, kind), text, tuple(named.items()))

    def _references(
        self, answer: dict[str, Any], *, under: tuple[str, ...], seen: set[tuple[str, str, int]]
    ) -> Iterator[tuple[str, str]]:
        """Name and text of all that an answer refers to, those that others refer to first."""
        for reference in answer.get("references") or ():
            try:
                name, subject, version = str(reference["name"]), str(reference["subject"]), int(reference["version"])
            except (TypeError, KeyError, ValueError) as error:
                raise self._no_registry("a reference of a schema is not readable") from error
            if (name, subject, version) in seen:
                continue
            seen.add((name, subject, version))
            if len(seen) > REFERENCES_MAX or len(under) > 100:
                raise self._no_registry(f"a schema refers to more than {REFERENCES_MAX} others")
            path = f"/subjects/{quote(subject, safe='')}/versions/{version}"
            inner = self._answer(path, f"version {version} of {subject!r}, which a schema refers to,")
            yield from self._references(inner, under=(*under, name), seen=seen)
            text = inner.get("schema")
            if not isinstance(text, str):
                raise self._no_registry(f"version {version} of {subject!r} has no schema")
            yield name, text

    def _answer(self, path: str, what: str) -> dict[str, Any]:
        """The object that the first address gives that answers at all."""
        failure: ConveyordError | None = None
        for url in self._access.urls:
            until, told = self._silent.get(url, (0.0, ""))
            if self._clock() < until:
                failure = Retryable(told)
                continue
            try:
                status, body = self._asked(f"{url}{path}")
            except _Silent as error:
                failure = error
                self._silent[url] = self._clock() + SILENCE_SECONDS, str(error)
                continue
            except Retryable as error:
                failure = error
                continue
            answer = _object(body)
            if status == 200 and answer is not None:
                return answer
            if status == 404 and answer is not None and "error_code" in answer:
                raise self._unknown(what)
            raise self._no_registry(f"it answers {status} to {path}")
        assert failure is not None, "a registry without an address"
        raise failure

    def _asked(self, address: str) -> tuple[int, bytes]:
        """Status and body of one answer that says something. Raises Retryable, or ConfigError."""
        import httpx

        headers = {
            "user-agent": f"conveyord/{__version__}",
            "accept": "application/vnd.schemaregistry.v1+json, application/json",
            "accept-encoding": "identity",
        }
        if self._access.authorization is not None:
            headers["authorization"] = self._access.authorization
        seconds = self._access.timeout_seconds
        timeout = httpx.Timeout(seconds).as_dict()
        request = httpx.Request("GET", address, headers=headers, extensions={"timeout": timeout})
        try:
            response = self._transport.handle_request(request)
            try:
                body = self._body(response, address)
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise _Silent(f"{address}: no whole answer within {seconds:g} s; is the registry up?") from error
        except httpx.TransportError as error:
            raise _failed(error, address) from error
        status = response.status_code
        if status in (401, 403):
            raise ConfigError(
                f"{address}: the registry does not let us in ({status}); check username and password, or token, of "
                "registry"
            )
        if 300 <= status < 400:
            raise ConfigError(f"{address}: answers {status}, a redirect; write the registry's final address as url")
        if status == 429 or status >= 500:
            raise Retryable(f"{address}: the registry answers {status}; is it well?")
        return status, body

    def _body(self, response: httpx.Response, address: str) -> bytes:
        end = time.monotonic() + self._access.timeout_seconds
        parts: list[bytes] = []
        size = 0
        for part in response.iter_raw():
            parts.append(part)
            size += len(part)
            if size > self._access.answer_bytes_max:
                limit = format_bytes(self._access.answer_bytes_max)
                raise ConfigError(f"{address}: the answer is larger than registry.max_schema ({limit}); raise it")
            if time.monotonic() > end:
                seconds = self._access.timeout_seconds
                raise _Silent(f"{address}: no whole answer within {seconds:g} s; raise registry.timeout")
        return b"".join(parts)

    def _unknown(self, what: str) -> RecordError:
        where = ", ".join(self._access.urls)
        return RecordError(what, f"{what} is not known to the registry at {where}", code=UNKNOWN_SCHEMA)

    def _no_registry(self, what: str) -> ConfigError:
        return ConfigError(f"{', '.join(self._access.urls)}: {what}; is there a schema registry at registry.url?")


class _Bounded(Generic[Key, Kept]):
    """A mapping that forgets what was not used for longest. Thread-safe."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._kept: OrderedDict[Key, Kept] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> Kept | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Key, value: Kept) -> None:
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self._count_max:
                self._kept.popitem(last=False)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _failed(error: httpx.TransportError, address: str) -> ConveyordError:
    """What a failure below HTTP means. Its own text may quote what was sent, so only its innermost cause is told."""
    causes, cause = [], error.__cause__ or error.__context__
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for found in causes:
        if isinstance(found, ssl.SSLCertVerificationError):
            return ConfigError(
                f"{address}: its certificate is not trusted ({found.verify_message}); name the certificate of its "
                "authority as registry.ca_file"
            )
    reasons = [found.strerror for found in causes if isinstance(found, OSError) and found.strerror]
    reason = reasons[-1] if reasons else type(error).__name__
    return Retryable(f"{address}: the connection failed ({reason}); is the registry up?")
