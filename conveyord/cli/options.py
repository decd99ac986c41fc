"""Options that several verbs share, and what they resolve to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from conveyord.config import Config

F = TypeVar("F", bound=Callable[..., Any])


class GivenPath(click.Path):
    """A path, as a `Path`. An empty one, such as of a variable that is not set, is not the directory one is in."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if value == "":
            self.fail("it is empty; name a path, `.` for the directory that you are in", param, ctx)
        return super().convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class Setting:
    """The configuration and the data directory that a verb works with."""

    config: Config
    data_dir: Path


def data_dir_option(command: F) -> F:
    """`--data-dir`, which wins over the configuration."""
    return click.option(
        "--data-dir",
        type=GivenPath(file_okay=False),
        help="Where everything is kept: catalog, tables, locks.  [default: ./conveyord-data]",
    )(command)


def config_option(command: F) -> F:
    """`--config`."""
    return click.option(
        "--config",
        "config_path",
        type=GivenPath(dir_okay=False),
        help="Settings.  [default: ./conveyord.toml, if there is one]",
    )(command)


def output_option(*formats: str) -> Callable[[F], F]:
    """`-o`; the first format is the default."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print the result.",
    )


def load_setting(config_path: Path | None, data_dir: Path | None) -> Setting:
    """Read the configuration and settle the data directory. Raises ConfigError."""
    from conveyord.config import load_config

    config = load_config(config_path)
    return Setting(config, data_dir if data_dir is not None else Path(config.data_dir))
