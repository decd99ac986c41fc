"""What a node tells Prometheus: its place in the cluster, its connections, and what its doors count."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from conveyord import __version__
from conveyord.cluster.ports import Cluster
from conveyord.core.raft.state import Role
from conveyord.runtime.rpc.limits import Counters

# From what is answered from memory to what waits for an election, and beyond for queries that wait for a change.
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Figures:
    """Of one node."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "conveyord_api_requests",
            "Operations by door (http, rpc), operation and code: OK, or why it was refused.",
            ("door", "operation", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "conveyord_api_request_seconds",
            "How long operations took, waiting for a change included.",
            ("door", "operation"),
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._answers = Counter(
            "conveyord_http_answers",
            "Answers by HTTP, by operation (or page) and status.",
            ("operation", "status"),
            registry=registry,
        )
        self._attempts = Counter(
            "conveyord_api_refused_tokens",
            "Tokens that were not accepted, by code; TLS_REQUIRED: it came in clear text from another machine.",
            ("code",),
            registry=registry,
        )

    def carried_out(self, door: str, operation: str, code: str, seconds: float) -> None:
        """Count an operation."""
        self._requests.labels(door, operation, code).inc()
        self._seconds.labels(door, operation).observe(seconds)

    def answered(self, operation: str, status: int) -> None:
        """Count an answer by HTTP."""
        self._answers.labels(operation, str(status)).inc()

    def token_refused(self, code: str) -> None:
        """Count a token that is not accepted."""
        self._attempts.labels(code).inc()


class NodeCollector(Collector):
    """Reads where a node stands whenever it is collected. To be collected in the trio thread."""

    def __init__(self, cluster: Cluster, counters: Counters) -> None:
        self._cluster = cluster
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """Every metric, those without samples too, so that one may see what there is."""
        yield from self._of_node()
        yield from self._of_raft()
        yield from self._of_peers()
        yield from self._of_rpc()

    def _of_node(self) -> Iterator[Metric]:
        build = InfoMetricFamily("conveyord_build", "The version that runs; always 1.")
        build.add_metric((), {"version": __version__})
        yield build
        identity = self._cluster.identity
        node = InfoMetricFamily("conveyord_node", "Who this node is, and of which cluster; always 1.")
        node.add_metric((), {"node": identity.node, "cluster": identity.cluster or ""})
        yield node
        yield _gauge("conveyord_node_incarnation", "How often the node was started.", identity.incarnation)
        phase = GaugeMetricFamily("conveyord_node_phase", "1 for the phase that the node is in.", labels=("phase",))
        for name in ("seeking", "member", "draining"):
            phase.add_metric((name,), float(self._cluster.phase == name))
        yield phase
        yield _gauge(
            "conveyord_disk_well", "Whether the disk takes writes in time and has room.", self._cluster.disk == "ok"
        )

    def _of_raft(self) -> Iterator[Metric]:
        standing = self._cluster.standing
        role = GaugeMetricFamily("conveyord_raft_role", "1 for what the node is in Raft.", labels=("role",))
        for known in Role:
            role.add_metric((known.value,), float(standing is not None and standing.role is known))
        yield role
        values = (
            (None, None, None, None)
            if standing is None
            else (standing.term, standing.leader is not None, standing.commit, standing.applied)
        )
        texts = (
            ("conveyord_raft_term", "The term of Raft."),
            ("conveyord_raft_has_leader", "Whether the node knows a leader."),
            ("conveyord_raft_commit_index", "The index up to which the node knows entries to be committed."),
            ("conveyord_raft_applied_index", "The index of the last entry in the state of the node."),
        )
        for (name, text), value in zip(texts, values, strict=True):
            yield _gauge(name, text, value)

    def _of_peers(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "conveyord_raft_peer_lag_entries", "Entries that a peer misses; known to the leader.", labels=("peer",)
        )
        heard = GaugeMetricFamily(
            "conveyord_raft_peer_heard_seconds", "Since a peer answered; known to the leader.", labels=("peer",)
        )
        snapshot = GaugeMetricFamily(
            "conveyord_raft_peer_gets_snapshot", "Whether a peer is being sent a snapshot.", labels=("peer",)
        )
        for peer in self._cluster.peers():
            lag.add_metric((peer.node,), peer.lag)
            heard.add_metric((peer.node,), peer.heard_seconds)
            snapshot.add_metric((peer.node,), float(peer.gets_snapshot))
        yield from (lag, heard, snapshot)

    def _of_rpc(self) -> Iterator[Metric]:
        of = self._counters
        for name, text, found in (
            (
                "refused_connections",
                "Connections between nodes that were refused, by reason (docs/wire.md).",
                of.refused_connections,
            ),
            ("refused_frames", "Frames that ended a connection, by reason.", of.refused_frames),
            ("refused_requests", "Requests that were not begun, by reason.", of.refused_requests),
            ("failed_requests", "Requests whose handler failed, by reason.", of.failed_requests),
            ("dropped_messages", "Messages that were dropped, by reason.", of.dropped_messages),
            ("cancelled_calls", "Calls that were given up, by reason.", of.cancelled_calls),
            ("ended_connections", "Connections that ended, by reason.", of.ended_connections),
        ):
            family = CounterMetricFamily(f"conveyord_rpc_{name}", text, labels=("reason",))
            for reason, count in sorted(found.items()):
                family.add_metric((reason,), count)
            yield family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """One figure; no sample if it is not known."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric((), float(value))
    return family


def node_registry(cluster: Cluster, counters: Counters) -> CollectorRegistry:
    """The metrics of a node and its process. counters: of its connections."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(NodeCollector(cluster, counters))
    return registry
