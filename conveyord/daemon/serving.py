"""A node from its settings to its end: ports, directory, identity, then its services, each after what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from conveyord.config.combinations import risky
from conveyord.config.model import Config
from conveyord.config.values import Address
from conveyord.core.errors import StorageFull
from conveyord.daemon.announcing import Announcing
from conveyord.daemon.listening import listening
from conveyord.daemon.services import means_of, services_of
from conveyord.runtime.notify import Notifier
from conveyord.runtime.nurseries import unwrapped
from conveyord.runtime.supervisor import Service, supervise
from conveyord.storage.backup.switching import refuse_unfinished
from conveyord.storage.identity import Identity, take_identity
from conveyord.storage.locks import owned

log = structlog.get_logger(__name__)

# Python lets a thread that computes run on for 5 ms before another gets its turn. The event loop would wait so long for
# each thread that applies, decodes or compresses, and heartbeats with it.
SWITCH_SECONDS = 0.0005

# What a node keeps is for who runs it: tokens, secrets in configuration entries, the audit. SQLite makes files that all
# may read, unless this says otherwise.
UMASK = 0o077


@dataclass(frozen=True, slots=True)
class Serving:
    """A node whose cluster answers. rpc: where others reach it. http: likewise, a URL."""

    node: str
    roles: tuple[str, ...]
    data_dir: Path
    rpc: Address
    http: str


async def serve(config: Config, *, stop: trio.Event, notifier: Notifier, on_answer: Callable[[Serving], None]) -> bool:
    """Run a node until `stop` is set. Returns whether it drained in time.

    on_answer: called once the cluster answers. Raises ConfigError where nothing was begun, and what ends a service:
    Refused, Corrupt, StorageFull, Retryable.
    """
    os.umask(UMASK)
    sys.setswitchinterval(SWITCH_SECONDS)
    data_dir, means = _absolute(config.data_dir), means_of(config)
    async with listening(config) as ports:
        with owned(data_dir):
            refuse_unfinished(data_dir)
            identity = _identity(data_dir, config)
            structlog.contextvars.bind_contextvars(node=identity.node)
            roles = tuple(sorted(config.node.roles))
            scheme = "https" if config.http.tls.certificate else "http"
            serving = Serving(identity.node, roles, data_dir, ports.rpc_address, f"{scheme}://{ports.http_address}")
            log.info(
                "starting",
                roles=",".join(roles),
                data_dir=str(data_dir),
                incarnation=identity.incarnation,
                rpc=str(ports.rpc_address),
                http=serving.http,
            )
            for warning in risky(config):
                log.warning(warning)
            services = services_of(config, means, data_dir, identity, ports)
            last = Announcing(services.cluster, notifier, config.shutdown.drain, on_answer=partial(on_answer, serving))
            return await _supervised([*services.in_order, last], config, stop, notifier)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would look links up


def _identity(data_dir: Path, config: Config) -> Identity:
    try:
        return take_identity(data_dir, node=config.node.id or None)
    except OSError as error:
        raise StorageFull(
            f"data directory {data_dir}: {error.strerror}; free space or make it writable, and start again"
        ) from error


async def _supervised(services: Sequence[Service], config: Config, stop: trio.Event, notifier: Notifier) -> bool:
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.keep_alive)  # also while services drain
            in_time = await supervise(services, stop=stop, drain_seconds=config.shutdown.drain)
            nursery.cancel_scope.cancel()
    log.info("stopped", in_order=in_time)
    return in_time
