"""The services of a node, each after those that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyord import __version__
from conveyord.api.service import ApiSettings, HttpService
from conveyord.cluster.node import Node
from conveyord.cluster.settings import NodeSettings
from conveyord.config.model import Config
from conveyord.config.node import HttpTlsConfig, RpcTlsConfig
from conveyord.daemon.clock import CLOCK, tell_time
from conveyord.daemon.listening import Listening
from conveyord.roles.router import RouterService
from conveyord.runtime.http_tls import ServerCertificate
from conveyord.runtime.rpc.tls import TlsContexts, TlsFiles
from conveyord.runtime.supervisor import Service
from conveyord.storage.identity import Identity

HTTP_DRAIN_SHARE = 1 / 3
"""Of the time for draining: as long may requests go on. The cluster hands over after them, and needs the rest."""


@dataclass(frozen=True, slots=True)
class Means:
    """What settings refer to, as it is in files and in the environment. secret: None if there is none."""

    secret: str | None
    rpc_tls: TlsContexts | None
    http_tls: ServerCertificate | None
    backup_properties: Mapping[str, str]


def means_of(config: Config) -> Means:
    """Blocking. To be asked for before a node takes anything: a file that is missing is a mistake to be told at once.

    Raises ConfigError for what is not there or cannot be used.
    """
    return Means(
        config.resolved_secret() or None,
        rpc_tls(config.rpc.tls),
        http_tls(config.http.tls),
        config.resolved_backup(),
    )


@dataclass(frozen=True, slots=True)
class Services:
    """cluster: the node's part in it, which is one of them."""

    cluster: Node
    in_order: Sequence[Service]


def services_of(config: Config, means: Means, data_dir: Path, identity: Identity, ports: Listening) -> Services:
    """What runs in a node of these settings. Within trio."""
    settings = _node_settings(config, means, data_dir, ports)
    node = Node(
        settings,
        identity,
        ports.rpc,
        admit_client=lambda hello: http.admit_client(hello),  # noqa: PLW0108 - it is not there yet
    )
    node.handlers.inline(CLOCK, tell_time)
    http = HttpService(node, _api_settings(config, means, settings), ports.http, rpc_counters=node.side.counters)
    return Services(node, (node, http, *_roles(settings, node)))


def _roles(settings: NodeSettings, node: Node) -> Iterator[Service]:
    if "router" in settings.roles:
        yield RouterService(node, settings.election_timeout_seconds)


def _node_settings(config: Config, means: Means, data_dir: Path, ports: Listening) -> NodeSettings:
    return NodeSettings(
        data_dir=data_dir,
        rpc_address=str(ports.rpc_address),
        http_address=str(ports.http_address),
        roles=tuple(sorted(config.node.roles)),
        expect=config.cluster.expect,
        join=config.cluster.join,
        secret=means.secret,
        tls=means.rpc_tls,
        election_timeout_seconds=config.cluster.election_timeout,
        version=__version__,
    )


def _api_settings(config: Config, means: Means, node: NodeSettings) -> ApiSettings:
    return ApiSettings(
        data_dir=node.data_dir,
        access=config.http.access,
        rpc_address=node.rpc_address,
        http_address=node.http_address,
        roles=node.roles,
        election_timeout_seconds=node.election_timeout_seconds,
        are_metrics_open=config.http.metrics_open,
        backup_properties=means.backup_properties,
        tls=None if means.http_tls is None else means.http_tls.context,
        drain_seconds=config.shutdown.drain * HTTP_DRAIN_SHARE,
    )


def rpc_tls(files: RpcTlsConfig) -> TlsContexts | None:
    """What encrypts RPC; None if nothing does. Blocking. Raises ConfigError if the files cannot be used."""
    if not files.certificate:
        return None
    return TlsContexts(TlsFiles(Path(files.certificate), Path(files.key), Path(files.ca)))


def http_tls(files: HttpTlsConfig) -> ServerCertificate | None:
    """What encrypts HTTP, likewise."""
    return ServerCertificate(Path(files.certificate), Path(files.key)) if files.certificate else None
