"""Settings that are fine each by itself, and cannot be together. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from conveyord.config.model import Config
from conveyord.config.values import parse_address


class Problem(NamedTuple):
    """key: at fault. sentence: what is wrong, and what to do."""

    key: tuple[str, ...]
    sentence: str


def impossible(config: Config, *, is_dev: bool = False) -> list[Problem]:
    """What is wrong with a node of these settings, all of it at once. is_dev: it is one for trying things."""
    return [
        *_of_rpc(config),
        *_of_http(config, is_dev=is_dev),
        *_of_advertising(config),
        *_of_tls(config),
        *_of_cluster(config),
    ]


def risky(config: Config) -> list[str]:
    """What may be meant, and is worth a warning: a sentence each."""
    found = []
    rpc, http = config.rpc.listen_address, config.http.listen_address
    if not rpc.is_loopback and not config.rpc.tls.certificate and not config.cluster.secret.get_secret_value():
        found.append(
            f"whoever reaches {rpc} can take part in the cluster: there are no certificates in [rpc.tls], and "
            "cluster.secret is empty"
        )
    elif (
        config.http.access == "tokens"
        and not config.rpc.tls.certificate
        and not config.cluster.secret.get_secret_value()
    ):
        found.append(
            f"whoever can connect to {rpc} on this machine can call itself a node, whom no token keeps from anything; "
            "set cluster.secret where users of this machine are not to be trusted"
        )
    if not http.is_loopback and not config.http.tls.certificate:
        found.append(
            f"{http} has no certificate in [http.tls], so tokens are refused from other machines: they would come in "
            "clear text"
        )
    return found


def _of_rpc(config: Config) -> Iterator[Problem]:
    rpc, address = config.rpc, config.rpc.listen_address
    if rpc.insecure and rpc.tls.certificate:
        yield Problem(("rpc", "insecure"), "rpc.insecure is true although [rpc.tls] is there; leave out one of the two")
    elif not (address.is_loopback or rpc.tls.certificate or rpc.insecure):
        yield Problem(
            ("rpc", "listen"),
            f"rpc.listen: at {address} other machines could take part in the cluster in clear text; give certificates "
            "in [rpc.tls], listen on 127.0.0.1, or, in a network that nobody else can reach, set rpc.insecure = true",
        )


def _of_http(config: Config, *, is_dev: bool) -> Iterator[Problem]:
    address, is_open = config.http.listen_address, config.http.access == "open"
    if is_open and not is_dev:
        yield Problem(
            ("http", "access"),
            'http.access = "open" makes an admin of everyone on this machine, and is for `conveyord dev` alone; leave '
            "it out: conveyorctl --data-dir lets in who can read the node's data directory",
        )
    elif is_open and not address.is_loopback:
        yield Problem(
            ("http", "listen"),
            f"conveyord dev makes an admin of everyone, and {address} can be reached from other machines; listen on "
            "127.0.0.1, or use conveyord start, which asks for tokens",
        )
    if address.port and address.port == config.rpc.listen_address.port:
        yield Problem(
            ("http", "listen"),
            f"http.listen: port {address.port} is that of rpc.listen; give each a port of its own",
        )


def _of_advertising(config: Config) -> Iterator[Problem]:
    for part, listening in (("rpc", config.rpc), ("http", config.http)):
        address = listening.listen_address
        if listening.advertise:
            advertised = parse_address(listening.advertise)
            if advertised.is_everywhere or not advertised.port:
                yield Problem(
                    (part, "advertise"),
                    f"{part}.advertise: nobody can connect to {advertised}; name the address and the port at which "
                    "other machines reach this one",
                )
        elif address.is_everywhere:
            yield Problem(
                (part, "listen"),
                f"{part}.listen: nobody can connect to {address}; set {part}.advertise to the address at which other "
                "machines reach this one",
            )


def _of_tls(config: Config) -> Iterator[Problem]:
    for part, tls in (("rpc", config.rpc.tls), ("http", config.http.tls)):
        given = dict(tls)
        if any(given.values()):
            together = ", ".join(f"{part}.tls.{name}" for name in given)
            for name in (name for name, path in given.items() if not path):
                yield Problem((part, "tls", name), f"{part}.tls.{name} is missing; {together} belong together")


def _of_cluster(config: Config) -> Iterator[Problem]:
    cluster = config.cluster
    is_router = "router" in config.node.roles
    if cluster.expect > 1 and not is_router:
        yield Problem(
            ("cluster", "expect"),
            f"cluster.expect: {cluster.expect} routers found a cluster, and this node is none; add router to "
            "node.roles, or leave expect out",
        )
    elif not is_router and not cluster.join:
        yield Problem(
            ("node", "roles"),
            "node.roles: only a router can have a cluster of its own; add router, or name nodes of a cluster in "
            "cluster.join",
        )
    if config.rpc.insecure and config.http.access == "tokens" and not cluster.secret:
        yield Problem(
            ("cluster", "secret"),
            "cluster.secret: rpc.insecure lets everyone reach the RPC port, and whoever does could call itself a node, "
            "whom no token keeps from anything; give the nodes the same secret here",
        )
    if cluster.expect > 1 and not cluster.join:
        yield Problem(
            ("cluster", "expect"),
            f"cluster.expect: {cluster.expect} nodes found a cluster together, and this one knows no other; name "
            "their RPC addresses in cluster.join",
        )
