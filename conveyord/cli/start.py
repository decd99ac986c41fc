"""`conveyord start`: a node, until it is told to stop."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.exits import EXIT_FAILED, reports_failures
from conveyord.cli.node_options import cluster_options, flags_of, place_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyord.config import Config
    from conveyord.daemon.serving import Serving


@click.command()
@place_options
@cluster_options
@reports_failures
def start(config_path: Path | None, **given: Any) -> int:
    """Start a node. This is what `conveyord` does when its options name no other verb.

    It listens, finds its cluster or founds it, and serves until the first Ctrl-C or SIGTERM, which lets what is
    under way come to its end; the second stops it at once. SIGHUP reads the log level from the settings again.
    Everything that it keeps is in its data directory: the same command starts the same node again.

    \b
    Exit codes: 0 after stopping in order or being removed from the cluster, 1 if it failed or did not drain in time,
    2 if a setting is wrong or a port is taken, 130 or 143 if it was stopped at once.
    """
    from conveyord.config import load_node_config
    from conveyord.core.state.names import ROLES
    from conveyord.daemon.built import check_roles

    flags = flags_of(given)
    _, named = flags.get(("node", "roles"), ("", ()))
    check_roles([role for role in ROLES if isinstance(named, list) and role in named])  # before what else they need
    config = load_node_config(config_path, flags)
    check_roles(config.node.roles)
    return run_node(config, reread=lambda: load_node_config(config_path, flags), on_answer=_log)


def run_node(config: Config, *, reread: Callable[[], Config], on_answer: Callable[[Serving], None]) -> int:
    """Run a node until it is told to stop; returns the exit code. reread: the settings as they are at a SIGHUP."""
    import os

    import trio

    from conveyord.cli.logs import configure_logs
    from conveyord.cluster.ports import Removed
    from conveyord.daemon.serving import serve
    from conveyord.runtime.notify import Notifier
    from conveyord.runtime.signals import Meaning, under_signals

    configure_logs(level=config.log.level, form=config.log.format)
    notifier = Notifier.of(os.environ)
    has_drained = list[bool]()

    async def work(stop: trio.Event) -> None:
        has_drained.append(await serve(config, stop=stop, notifier=notifier, on_answer=on_answer))

    meaning = Meaning(
        "draining: what is under way may end; again to stop at once",
        "stopping at once: what was acknowledged is on disk",
        partial(_reload_logs, reread),
    )
    try:
        signalled = trio.run(under_signals, work, meaning)
    except Removed as removed:  # as somebody wanted it, so nobody is to start it again
        click.echo(f"conveyord: {removed}", err=True)
        return 0
    finally:
        notifier.close()
    if signalled.is_cancelled and signalled.number is not None:
        return 128 + signalled.number
    return 0 if has_drained == [True] else EXIT_FAILED


def _log(serving: Serving) -> None:
    import structlog

    structlog.get_logger(__name__).info("the cluster answers", http=serving.http, rpc=str(serving.rpc))


def _reload_logs(reread: Callable[[], Config]) -> None:
    """Take the log level and format that the settings have now. Everything else needs a restart."""
    import structlog

    from conveyord.cli.logs import configure_logs
    from conveyord.core.errors import ConfigError

    log = structlog.get_logger(__name__)
    try:
        config = reread()
    except ConfigError as error:
        log.warning("the settings are wrong now, and nothing of them is taken", reason=str(error))
        return
    configure_logs(level=config.log.level, form=config.log.format)
    log.info(
        "the settings of logs were read again; any other needs a restart, and certificates are read when they change",
        level=config.log.level,
    )
