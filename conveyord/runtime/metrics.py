"""Metrics over HTTP: what a registry of prometheus-client holds, at GET /metrics.

Every request is answered by its head, in the event loop: no body is read, and a client that is slow to take an answer
waits for itself alone. However many ask, figures are collected once in FRESH_SECONDS, and more seldom if that takes
long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio

from conveyord.runtime.http_server import Answer, Declined, Head, Held, HttpServer, Limits, problem

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

log = structlog.get_logger(__name__)

PATH = "/metrics"
FRESH_SECONDS = 0.2  # as often as a run brings its own figures up to date
COLLECTING_SHARE_MAX = 0.05  # of the event loop's time, which everything else waits for meanwhile
OPEN_METRICS = "application/openmetrics-text"
OPEN_METRICS_VERSION = "1.0.0"
LIMITS = Limits(
    body_bytes_max=0,
    held_bytes_max=0,
    connections_max=16,  # a few servers of metrics and a person who looks
    head_seconds=5.0,
    piece_seconds=10.0,  # Prometheus gives a scrape ten seconds unless told otherwise
    request_seconds=5.0,
)


@dataclass(frozen=True, slots=True)
class _Page:
    """What was answered, and until when it is answered again, by trio's clock."""

    answer: Answer
    stale_at_seconds: float


class MetricsPage:
    """Answers requests with what `registry` collects. For one event loop, the one that owns the figures."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry
        self._pages: dict[bool, _Page] = {}

    def admit(self, head: Head) -> NoReturn:
        """Answer a request: raises Declined with the answer, 200 included, so that no body is waited for."""
        if head.path != PATH or head.method not in {"GET", "HEAD"}:
            raise problem(404, "NOT_FOUND", f"metrics are at GET {PATH}, and there is nothing else here")
        open_metrics = _wants_open_metrics(head.headers.get("accept", ""))
        page, now = self._pages.get(open_metrics), trio.current_time()
        if page is None or now >= page.stale_at_seconds:
            answer = self._collected(open_metrics=open_metrics)
            taken_seconds = trio.current_time() - now
            page = _Page(answer, now + max(FRESH_SECONDS, taken_seconds / COLLECTING_SHARE_MAX))
            self._pages[open_metrics] = page
        raise Declined(page.answer)

    def _collected(self, *, open_metrics: bool) -> Answer:
        try:
            render, content_type = _form(open_metrics=open_metrics)
            return Answer(200, render(self._registry), {"content-type": content_type})
        except Exception as error:  # noqa: BLE001 - whatever a collector does wrong, the run must not end of it
            log.warning("metrics could not be collected", reason=f"{type(error).__name__}: {error}")
            return problem(500, "COLLECTION_FAILED", "the metrics could not be collected; the log says why").answer


async def serve_metrics(registry: Collector, listeners: list[trio.SocketListener]) -> None:
    """Serve `registry` on `listeners` until cancelled, and close them. Never raises: a run goes on without metrics."""
    try:
        await HttpServer(MetricsPage(registry).admit, _unread, LIMITS).serve(listeners, drain=trio.Event())
    except Exception as error:  # noqa: BLE001 - whatever went wrong here, the run must not end of it
        log.error("metrics are no longer served", reason=f"{type(error).__name__}: {error}")


async def _unread(head: Head, held: Held) -> Answer:  # noqa: ARG001 - as `Respond` says
    await trio.lowlevel.checkpoint()
    raise AssertionError("a request is answered by its head")


def _form(*, open_metrics: bool) -> tuple[Callable[[Collector], bytes], str]:
    # Not prometheus_client's own negotiation, which repeats what a client asked for and fails for odd versions.
    from prometheus_client import exposition
    from prometheus_client.openmetrics import exposition as openmetrics

    if open_metrics:
        return openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
    return exposition.generate_latest, exposition.CONTENT_TYPE_PLAIN_0_0_4


def _wants_open_metrics(accept: str) -> bool:
    """Whether one of the media types that are asked for is OpenMetrics in the version that is spoken here."""
    for accepted in accept.split(","):
        media, *parameters = (part.strip() for part in accepted.split(";"))
        versions = [part.partition("=")[2] for part in parameters if part.startswith("version=")]
        if media == OPEN_METRICS and versions in ([], [OPEN_METRICS_VERSION]):
            return True
    return False
