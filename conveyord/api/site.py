"""All that one HTTP port answers: REST, health, metrics, pages."""

from __future__ import annotations

from conveyord.api.access import Access
from conveyord.api.carrying_out import Desk, check_role
from conveyord.api.codes import METHOD_NOT_ALLOWED, NO_SUCH_PATH, status_of
from conveyord.api.figures import Figures
from conveyord.api.health import readiness, text
from conveyord.api.operations import STATUS
from conveyord.api.pages import page
from conveyord.api.rest import Rest
from conveyord.api.routing import ROOT
from conveyord.core.errors import ConveyordError
from conveyord.runtime import http_server as http
from conveyord.runtime.metrics import PATH as METRICS
from conveyord.runtime.metrics import MetricsPage

LIVE, READY = "/livez", "/readyz"
READS = frozenset({"GET", "HEAD"})
PLAIN = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store"}


class Site:
    """For the trio thread."""

    def __init__(self, desk: Desk, access: Access, figures: Figures, *, are_metrics_open: bool) -> None:
        self._desk = desk
        self._access = access
        self._rest = Rest(desk, access, figures)
        self._figures = figures
        self._metrics = MetricsPage(figures.registry)
        self._are_metrics_open = are_metrics_open

    def admit(self, head: http.Head) -> None:
        """Answer what its head is enough for, and let in what belongs to the API. Raises http.Declined with answers."""
        path = head.path
        if (found := page(path, needs_token=self._access.mode == "tokens")) is not None:
            self._answer(head, "page", found)
        if path.startswith(f"{ROOT}/"):
            self._rest.admit(head)
        elif path == LIVE:
            self._answer(head, "livez", http.Answer(200, b"alive\n", PLAIN))
        elif path == READY:
            self._answer(head, "readyz", self._readiness(head))
        elif path == METRICS:
            self._only_read(head, "metrics")
            self._may_see_metrics(head)
            self._figures.answered("metrics", 200)
            self._metrics.admit(head)
        else:
            self._figures.answered("none", 404)
            raise http.problem(404, NO_SUCH_PATH, f"there is nothing at {path[:200]}; the API is at {ROOT}, see /docs")

    async def respond(self, head: http.Head, held: http.Held) -> http.Answer:
        """Answer a whole request to the API."""
        return await self._rest.respond(head, held)

    def _answer(self, head: http.Head, name: str, answer: http.Answer) -> None:
        self._only_read(head, name)
        self._figures.answered(name, answer.status)
        raise http.Declined(answer)

    def _only_read(self, head: http.Head, name: str) -> None:
        if head.method not in READS:
            status = status_of(METHOD_NOT_ALLOWED)
            self._figures.answered(name, status)
            allow = ", ".join(sorted(READS))
            raise http.problem(
                status,
                METHOD_NOT_ALLOWED,
                f"{head.path} does not take {head.method}; it takes {allow}",
                headers={"allow": allow},
            )

    def _readiness(self, head: http.Head) -> http.Answer:
        cluster = self._desk.context.cluster
        looks = readiness(
            cluster.phase, cluster.waiting, cluster.standing, cluster.disk, knows_tokens=self._access.is_ready
        )
        status = 200 if all(look.is_well for look in looks) else 503
        return http.Answer(status, text(looks, is_verbose=head.query == "verbose").encode(), PLAIN)

    def _may_see_metrics(self, head: http.Head) -> None:
        if self._are_metrics_open:
            return
        try:
            check_role(STATUS, self._rest.caller(head))
        except ConveyordError as error:
            raise self._rest.problem(head, error) from error
