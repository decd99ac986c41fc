"""`raft`: what is done to a node that does not run, when a cluster has lost its majority or a disk is not trusted."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conveyord.cli.ctl.asking import confirmed, yes_option
from conveyord.cli.ctl.backup import ACTOR, new_history
from conveyord.cli.ctl.output import FORMATS, show_facts
from conveyord.cli.exits import EXIT_FAILED, reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from conveyord.core.raft.membership import Membership
    from conveyord.core.raft.types import Mark
    from conveyord.storage.backup.verifying import Report


@click.group()
def raft() -> None:
    """Look at the log and the state of a node, and go on when the majority is lost."""


@raft.command("recover")
@data_dir_option
@yes_option
@config_option
@output_option(*FORMATS)
@reports_failures
def recover(data_dir: Path | None, yes: bool, config_path: Path | None, output: str) -> None:
    """Make of a stopped node a cluster of one, when the majority of voters is lost FOR GOOD.

    Everything in its log counts as committed from then on, also what no majority ever had; what the lost nodes
    had committed and this one lacks is gone. Choose the node with the highest last entry, as raft verify shows
    it. Do it at ONE node; the others must not be started again on what they have: they join with empty data
    directories. Nothing is deleted: what was there is moved to before-HISTORY within the directory.
    """
    from conveyord.storage.backup import recovering

    directory = load_setting(config_path, data_dir).data_dir
    what = (
        f"Make a cluster of one of the node in {directory}: every entry in its log counts as committed then, what it "
        "lacks is lost, and no other node of this cluster may be started again on what it has"
    )
    if not confirmed(what, yes=yes):
        return
    history = new_history()
    done = recovering.recover(directory, history, actor=ACTOR, at_ms=time.time_ns() // 1_000_000)
    document = {
        "node": done.identity.node,
        "history": history,
        "last": done.last,
        "known_committed": done.known,
        "lost": done.lost,
        "data_dir": str(directory),
        "moved_aside": str(done.aside),
    }
    facts = {
        "node": done.identity.node,
        "history": history,
        "last entry": f"{done.last}; up to {done.known} the node had known to be committed",
        "lost voters": ", ".join(done.lost),
        "moved aside": str(done.aside),
    }
    show_facts(document, facts, output)
    if output in ("table", "wide"):
        click.echo(f"Start it with this data directory ({directory}), then the others with empty ones.")


@raft.command("verify")
@data_dir_option
@config_option
@output_option(*FORMATS)
@reports_failures
def verify(data_dir: Path | None, config_path: Path | None, output: str) -> int:
    """Check log, state and snapshots of a stopped node, and change nothing. Exit code 1 means damage.

    A copy of log and state is made for it below $TMPDIR. Two nodes whose state is of the same entry must show
    the same digest.
    """
    from conveyord.storage.backup import verifying

    directory = load_setting(config_path, data_dir).data_dir
    with tempfile.TemporaryDirectory(prefix="conveyord-verify-") as scratch:
        report = verifying.verify(directory, Path(scratch))
    show_facts(_document(report), _facts(report), output)
    if output in ("table", "wide"):
        for fault in report.faults:
            click.echo(f"DAMAGE: {fault}")
        if not report.faults:
            click.echo("log and state are whole")
    return EXIT_FAILED if report.faults else 0


def _document(report: Report) -> dict[str, Any]:
    members = report.membership
    return {
        "node": report.node,
        "cluster": report.cluster,
        "term": report.term,
        "vote": report.vote,
        "commit": report.commit,
        **{name: _place(mark) for name, mark in _marks(report).items()},
        "voters": members and sorted(members.electorate),
        "learners": members and sorted(members.learners),
        "digest": report.digest and report.digest.hex(),
        "snapshots": report.snapshots,
        "ok": not report.faults,
        "faults": report.faults,
    }


def _marks(report: Report) -> dict[str, Mark | None]:
    return {"base": report.base, "last": report.last, "applied": report.applied}


def _place(mark: Mark | None) -> dict[str, Any] | None:
    return mark and {"index": mark.index, "term": mark.term, "chain": mark.chain.hex()}


def _facts(report: Report) -> dict[str, str]:
    shown = {name: f"{mark.index} of term {mark.term}" if mark else "" for name, mark in _marks(report).items()}
    return {
        "node": report.node or "",
        "cluster": report.cluster or "",
        "term": "" if report.term is None else f"{report.term}, vote for {report.vote or 'nobody'}",
        "log begins after": shown["base"],
        "last entry": shown["last"],
        "known committed": "" if report.commit is None else str(report.commit),
        "in the state": shown["applied"],
        "voters": _names(report.membership),
        "digest": report.digest.hex() if report.digest else "",
        "snapshots": ", ".join(map(str, report.snapshots)),
    }


def _names(members: Membership | None) -> str:
    return ", ".join(sorted(members.electorate)) if members is not None else ""
