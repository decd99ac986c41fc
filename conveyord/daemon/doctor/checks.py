"""All that is looked at, in one go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from conveyord.config.combinations import risky
from conveyord.config.model import Config
from conveyord.core.errors import ConveyordError
from conveyord.daemon.doctor.certificates import look_at_certificates
from conveyord.daemon.doctor.directory import holder_of, look_at_directory
from conveyord.daemon.doctor.findings import Finding
from conveyord.daemon.doctor.machine import look_at_machine
from conveyord.daemon.doctor.network import look_at_others, look_at_ports
from conveyord.daemon.doctor.packages import look_at_packages
from conveyord.storage.backup.switching import identity_or_none
from conveyord.storage.identity import Identity


async def examine(config: Config, environment: Mapping[str, str]) -> list[Finding]:
    """Look at everything that a node of these settings needs. Blocks for moments: nothing else runs here."""
    data_dir = Path(config.data_dir)
    holder = holder_of(data_dir)
    risks = [Finding("settings", "warning", sentence) for sentence in risky(config)]
    findings = [*look_at_packages(), *look_at_machine(environment), *risks]
    findings += look_at_directory(data_dir, election_seconds=config.cluster.election_timeout)
    if holder is not None:
        findings.append(Finding("owner", "info", f"process {holder} runs on {data_dir}"))
    identity: Identity | None = None
    try:
        identity = identity_or_none(data_dir)
        findings.append(_of_identity(config, identity))
    except (ConveyordError, OSError) as error:
        findings.append(Finding("identity", "wrong", str(error)))
    findings += look_at_ports(config, holder)
    node = identity.node if identity is not None else config.node.id or None
    findings += look_at_certificates(config, node, now_seconds=time.time())
    try:
        findings += await look_at_others(config, identity, is_running=holder is not None)
    except ConveyordError as error:
        findings.append(Finding("cluster", "wrong", str(error)))
    return findings


def _of_identity(config: Config, identity: Identity | None) -> Finding:
    if identity is None:
        return Finding("identity", "ok", f"none yet; the first start takes {config.node.id or 'a new id'}")
    if config.node.id not in ("", identity.node):
        return Finding(
            "identity",
            "wrong",
            f"{config.data_dir} belongs to node {identity.node}, and node.id is {config.node.id}",
            "set node.id to that of the directory, or give this node another directory",
        )
    where = f"of cluster {identity.cluster}" if identity.cluster else "of no cluster yet"
    return Finding("identity", "ok", f"node {identity.node} {where}, started {identity.incarnation} times")
