"""What the command line says of a node, as keys of the settings that it wins over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from conveyord.cli.options import config_option, data_dir_option

if TYPE_CHECKING:
    from conveyord.config.loading import Flags

F = TypeVar("F", bound=Callable[..., Any])

KEYS = {
    "data_dir": ("data_dir",),
    "rpc": ("rpc", "listen"),
    "http": ("http", "listen"),
    "roles": ("node", "roles"),
    "node_id": ("node", "id"),
    "expect": ("cluster", "expect"),
    "join": ("cluster", "join"),
    "log_level": ("log", "level"),
    "log_format": ("log", "format"),
}
"""By the name of the option's parameter, the key that it wins over."""

LISTS = frozenset({"roles", "join"})


def place_options(command: F) -> F:
    """Where a node is: its directory, its ports, its logs."""
    for option in (
        click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]"),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]"),
        click.option("--http", metavar="HOST:PORT", help="Where the API listens.  [default: 127.0.0.1:7480]"),
        click.option("--rpc", metavar="HOST:PORT", help="Where other nodes connect.  [default: 127.0.0.1:7400]"),
        config_option,
        data_dir_option,
    ):
        command = option(command)
    return command


def cluster_options(command: F) -> F:
    """Which node of which cluster it is."""
    for option in (
        click.option("--node-id", metavar="ID", help="The node's id.  [default: as data_dir has it, or a new one]"),
        click.option("--expect", type=int, metavar="N", help="Routers that found a cluster together.  [default: 1]"),
        click.option(
            "--join", multiple=True, metavar="HOST:PORT", help="RPC address of another node; repeat it for more."
        ),
        click.option("--roles", metavar="ROLE,ROLE", help="What the node does.  [default: router]"),
    ):
        command = option(command)
    return command


def flags_of(given: dict[str, Any]) -> Flags:
    """The keys that options win over. given: parameters of `place_options` and `cluster_options`, as click has them."""
    return {
        KEYS[name]: (f"--{name.replace('_', '-')}", _value(name, value))
        for name, value in given.items()
        if value not in (None, ())
    }


def _value(name: str, value: Any) -> object:
    if name not in LISTS:
        return str(value) if isinstance(value, Path) else value
    parts = [value] if isinstance(value, str) else value
    return [part.strip() for text in parts for part in text.split(",")]
