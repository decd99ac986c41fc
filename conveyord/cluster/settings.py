"""What a node is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from conveyord import __version__
from conveyord.core.planning.founding import ROUTER
from conveyord.core.raft.types import Options
from conveyord.runtime.raft.snapshots import Policy
from conveyord.runtime.rpc.dialing import Address
from conveyord.runtime.rpc.limits import Limits
from conveyord.runtime.rpc.tls import TlsContexts

HEARTBEATS_PER_TIMEOUT = 5  # notes/raft.md, 5.3


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """rpc_address, http_address: where others reach this node, as `host:port`. roles: in the order of the alphabet.

    expect: routers that a new cluster is founded with. join: RPC addresses of nodes to meet; some of them may be away.
    secret: what the nodes show each other; None if they show certificates, or nothing. election_timeout_seconds:
    the same at all of them.
    """

    data_dir: Path
    rpc_address: str
    http_address: str
    roles: tuple[str, ...] = (ROUTER,)
    expect: int = 1
    join: tuple[str, ...] = ()
    secret: str | None = None
    tls: TlsContexts | None = None
    election_timeout_seconds: float = 1.0
    version: str = __version__
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)

    @property
    def options(self) -> Options:
        """Those of Raft."""
        timeout = self.election_timeout_seconds
        return Options(election_timeout_seconds=timeout, heartbeat_seconds=timeout / HEARTBEATS_PER_TIMEOUT)


def parse_address(text: str) -> Address:
    """`host:port`, or `[::1]:port`, as it is dialled. It was checked before (`core/state/names.py: wrong_address`)."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
