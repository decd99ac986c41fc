"""Settings of a node: who it is, where it listens, which cluster it belongs to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from conveyord.config.values import Address, AddressOrEmpty, AddressText, FromList, Model, parse_address
from conveyord.core.state.names import wrong_address, wrong_id
from conveyord.core.units import Seconds, parse_seconds

EXPECT_MAX = 9  # voters; each commit waits for most of them, and nine survive four losses
JOIN_MAX = 64  # addresses, tried one after the other

Role = Literal["builder", "ingestion", "router", "scheduler", "sidecar"]


def _check_id(text: str) -> str:
    if text and (wrong := wrong_id("node", text)) is not None:
        raise ValueError(wrong.message)
    return text


def _check_once(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{twice[0]!r} stands here twice; name each once")
    return values


def _check_some(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("a node without a role does nothing; name one")
    return values


def _check_target(text: str) -> str:
    if (wrong := wrong_address("join", text)) is not None:
        raise ValueError(wrong.message)
    return text


def _check_expect(count: int) -> int:
    if count % 2 == 0 or not 1 <= count <= EXPECT_MAX:
        raise ValueError(
            f"{count} nodes cannot found a cluster; an odd number can, up to {EXPECT_MAX}: one more than an odd number "
            "survives no more losses"
        )
    return count


def _between(least: str, most: str) -> AfterValidator:
    """Refuse a duration that is shorter or longer."""

    def check(seconds: float) -> float:
        if not parse_seconds(least) <= seconds <= parse_seconds(most):
            raise ValueError(f"{seconds:g} s is out of range; write {least} to {most}")
        return seconds

    return AfterValidator(check)


class NodeConfig(Model):
    """id: empty for the one in data_dir, or a new one. roles: what the node does."""

    id: Annotated[str, AfterValidator(_check_id)] = ""
    roles: Annotated[tuple[Role, ...], FromList, AfterValidator(_check_some), AfterValidator(_check_once)] = ("router",)


class RpcTlsConfig(Model):
    """PEM files, from the directory of the settings. All empty: no TLS. What others show is signed by `ca` too."""

    certificate: str = ""
    key: str = ""
    ca: str = ""


class HttpTlsConfig(Model):
    """PEM files, likewise."""

    certificate: str = ""
    key: str = ""


class _Listening(Model):
    listen: AddressText
    advertise: AddressOrEmpty = ""

    @property
    def listen_address(self) -> Address:
        """Where the node listens."""
        return parse_address(self.listen)

    def advertised(self, listening: Address) -> Address:
        """Where others reach the node, which listens at `listening`."""
        return parse_address(self.advertise) if self.advertise else listening


class RpcConfig(_Listening):
    """The port of other nodes. advertise: where they reach it; empty for `listen`."""

    listen: AddressText = "127.0.0.1:7400"
    insecure: bool = False
    tls: RpcTlsConfig = Field(default_factory=RpcTlsConfig)


class HttpConfig(_Listening):
    """The port of people and programs. metrics_open: /metrics needs no token."""

    listen: AddressText = "127.0.0.1:7480"
    access: Literal["tokens", "open"] = "tokens"
    metrics_open: bool = False
    tls: HttpTlsConfig = Field(default_factory=HttpTlsConfig)


_Target = Annotated[str, AfterValidator(_check_target)]


class ClusterConfig(Model):
    """expect: routers that found a cluster together. join: RPC addresses of others. secret: what all of them know."""

    expect: Annotated[int, AfterValidator(_check_expect)] = 1
    join: Annotated[tuple[_Target, ...], FromList, AfterValidator(_check_once)] = Field(default=(), max_length=JOIN_MAX)
    secret: SecretStr = SecretStr("")
    election_timeout: Annotated[Seconds, _between("100ms", "60s")] = 1.0  # below, a slow sync looks like a death


class ShutdownConfig(Model):
    """drain: seconds in which what is under way may end."""

    drain: Annotated[Seconds, _between("1s", "1h")] = 30.0
