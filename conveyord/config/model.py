"""All settings in one."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from conveyord.config.node import ClusterConfig, HttpConfig, NodeConfig, RpcConfig, ShutdownConfig
from conveyord.config.running import DeadLettersConfig, LogConfig, RunConfig, SpillConfig
from conveyord.config.values import Model, resolved

EMBEDDED_CATALOG = "lake"


def _refuse_embedded(name: str) -> str:
    if name == EMBEDDED_CATALOG:
        raise ValueError(f"{EMBEDDED_CATALOG!r} is the embedded catalog in data_dir; give yours another name")
    return name


def _refuse_nowhere(path: str) -> str:
    if not path:
        raise ValueError("it is empty; name a directory, or leave it out")
    return path


CatalogName = Annotated[str, AfterValidator(_refuse_embedded)]


class Config(Model):
    """All settings. catalogs: pyiceberg properties by catalog. backup: those of stores. Both are masked when shown."""

    data_dir: Annotated[str, AfterValidator(_refuse_nowhere)] = "conveyord-data"
    node: NodeConfig = Field(default_factory=NodeConfig)
    rpc: RpcConfig = Field(default_factory=RpcConfig)
    http: HttpConfig = Field(default_factory=HttpConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    shutdown: ShutdownConfig = Field(default_factory=ShutdownConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    log: LogConfig = Field(default_factory=LogConfig)
    spill: SpillConfig = Field(default_factory=SpillConfig)
    dead_letters: DeadLettersConfig = Field(default_factory=DeadLettersConfig)
    backup: dict[str, SecretStr] = Field(default_factory=dict)
    catalogs: dict[CatalogName, dict[str, SecretStr]] = Field(default_factory=dict)

    def resolved_catalogs(self) -> dict[str, dict[str, str]]:
        """The catalogs with `env:NAME` and `file:PATH` replaced by what they refer to. Blocking.

        Raises ConfigError naming the property, never the secret.
        """
        return {name: _resolved(given, f"catalogs.{name}") for name, given in self.catalogs.items()}

    def resolved_backup(self) -> dict[str, str]:
        """The properties of the stores of backups, likewise."""
        return _resolved(self.backup, "backup")

    def resolved_secret(self) -> str:
        """What all nodes of the cluster know, likewise; empty if there is nothing."""
        return resolved(self.cluster.secret.get_secret_value(), "cluster.secret")

    def thread_count(self) -> int:
        """`run.threads`, with 0 replaced by the number of cores this process may use."""
        return self.run.threads or len(os.sched_getaffinity(0))


def _resolved(given: dict[str, SecretStr], where: str) -> dict[str, str]:
    return {key: resolved(value.get_secret_value(), f"{where}.{key}") for key, value in given.items()}
