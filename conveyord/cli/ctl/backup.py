"""`backup`: copies of what the cluster has agreed on, outside of it; and a node from one.

All of this needs no node, only the place where the backups lie. `backup create` asks a node, and is added beside it.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from conveyord.cli.ctl.asking import confirmed, yes_option
from conveyord.cli.ctl.output import FORMATS, Column, moment, show, show_facts
from conveyord.cli.exits import reports_failures
from conveyord.cli.options import config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from conveyord.storage.backup.backups import Backups, Listed
    from conveyord.storage.backup.manifest import Manifest

F = TypeVar("F", bound=Callable[..., Any])

ACTOR = "conveyorctl"
"""On whose behalf the audit has what a restore or a recovery did."""

HISTORY_BYTES = 6


def store_option(command: F) -> F:
    """`--store`."""
    return click.option(
        "--store",
        "url",
        required=True,
        metavar="URL",
        help="Where the backups lie: file:///DIRECTORY or s3://BUCKET/PREFIX.",
    )(command)


@click.group()
def backup() -> None:
    """Keep copies of what a cluster has agreed on, and begin anew from one.

    How to reach S3 is taken from the section [backup] of the configuration (s3.endpoint, s3.region,
    s3.access-key-id, s3.secret-access-key, s3.session-token); credentials that are not there from where
    Amazon's tools have them.
    """


@backup.command("list")
@store_option
@config_option
@output_option(*FORMATS)
@reports_failures
def list_(url: str, config_path: Path | None, output: str) -> None:
    """List all backups, the newest first. A damaged one is shown with what is wrong with it."""
    found = _open(url, config_path).list()
    show({"backups": [_listed_document(one) for one in found]}, _COLUMNS, found, output)
    if not found and output in ("table", "wide"):
        click.echo(f"no backups in {url}")


@backup.command("describe")
@click.argument("id_", metavar="ID")
@store_option
@config_option
@output_option(*FORMATS)
@reports_failures
def describe(id_: str, url: str, config_path: Path | None, output: str) -> None:
    """Show one backup. Of its snapshot only the size is looked at; restore --validate-only reads all of it."""
    manifest = _open(url, config_path).describe(id_)
    show_facts({"backup": _document(manifest)}, _facts(manifest), output)


@backup.command("restore")
@click.argument("id_", metavar="ID")
@store_option
@data_dir_option
@click.option("--node", metavar="ID", help="Id of the node.  [default: that of the node that was there, or a new one]")
@click.option("--expect-cluster", metavar="ID", help="Refuse a backup of any other cluster.")
@click.option("--force", is_flag=True, help="Move aside what a node of this cluster has in the directory.")
@click.option(
    "--validate-only",
    is_flag=True,
    help="Read and check everything, and make nothing. A directory is looked at only if --data-dir names it.",
)
@config_option
@output_option(*FORMATS)
@reports_failures
def restore(
    id_: str,
    url: str,
    data_dir: Path | None,
    node: str | None,
    expect_cluster: str | None,
    force: bool,
    validate_only: bool,
    config_path: Path | None,
    output: str,
) -> None:
    """Make a data directory in which one node starts as a cluster of one, with the state of a backup.

    All nodes of before must be stopped for good. The others join with empty data directories. Nothing is
    deleted: what was there is moved to before-ID within the directory. A restore that was cut off is run again.
    """
    from conveyord.storage.backup import restoring

    backups = _open(url, config_path)
    if validate_only:
        with tempfile.TemporaryDirectory(prefix="conveyord-backup-") as scratch:
            manifest = restoring.validate(
                backups, id_, Path(scratch), expect_cluster=expect_cluster, data_dir=data_dir, force=force
            )
        show_facts({"backup": _document(manifest), "valid": True}, _facts(manifest) | {"valid": "yes"}, output)
        return
    directory = load_setting(config_path, data_dir).data_dir
    history = new_history()
    done = restoring.restore(
        backups,
        id_,
        directory,
        node=node,
        new_history=history,
        expect_cluster=expect_cluster,
        force=force,
        actor=ACTOR,
        at_ms=time.time_ns() // 1_000_000,
    )
    aside = None if done.aside is None else str(done.aside)
    document = {
        "node": done.identity.node,
        "cluster": done.manifest.cluster,
        "history": history,
        "state_index": done.manifest.index,
        "data_dir": str(directory),
        "moved_aside": aside,
    }
    show_facts(document, {key.replace("_", " "): str(value or "") for key, value in document.items()}, output)
    if output in ("table", "wide"):
        click.echo(f"Start it with this data directory ({directory}), then the others with empty ones.")


@backup.command("cleanup")
@store_option
@click.option(
    "--keep", required=True, type=click.IntRange(min=1), help="How many whole backups of each cluster stay, the newest."
)
@yes_option
@config_option
@output_option(*FORMATS)
@reports_failures
def cleanup(url: str, keep: int, yes: bool, config_path: Path | None, output: str) -> None:
    """Remove all but the newest backups of each cluster, and what cut-off uploads left a day ago.

    Damaged backups do not count and stay.
    """
    backups = _open(url, config_path)
    if not confirmed(f"Remove all but the newest {keep} of each cluster in {url} for good", yes=yes):
        return
    gone = backups.cleanup(keep=keep)
    show({"ids": gone}, [Column[str]("removed", str)], gone, output)
    if not gone and output in ("table", "wide"):
        click.echo("nothing to remove")


def new_history() -> str:
    """An id that was never used, for what a cluster is after a restore or a recovery."""
    return f"h-{secrets.token_hex(HISTORY_BYTES)}"


def _open(url: str, config_path: Path | None) -> Backups:
    from conveyord.storage.backup.backups import open_backups

    return open_backups(url, load_setting(config_path, None).config.resolved_backup())


def _document(manifest: Manifest) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(manifest)
    return {**fields, "state_index": fields.pop("index"), "fault": ""}  # named as in the API


def _listed_document(one: Listed) -> dict[str, Any]:
    return {"id": one.id, "fault": one.fault} if one.manifest is None else _document(one.manifest)


def _facts(manifest: Manifest) -> dict[str, str]:
    from conveyord.core.units import format_bytes

    return {
        "id": manifest.id,
        "cluster": manifest.cluster,
        "history": manifest.history,
        "index": f"{manifest.index} of term {manifest.term}",
        "voters": ", ".join(manifest.voters),
        "learners": ", ".join(manifest.learners),
        "made": f"{moment(manifest.created_at_ms)} by {manifest.by}, conveyord {manifest.version}",
        "protocol": str(manifest.protocol),
        "size": f"{format_bytes(manifest.file_bytes)}, {format_bytes(manifest.state_bytes)} unpacked",
        "digest": manifest.digest,
    }


def _of(tell: Callable[[Manifest], str]) -> Callable[[Listed], str]:
    return lambda one: "" if one.manifest is None else tell(one.manifest)


def _size(manifest: Manifest) -> str:
    from conveyord.core.units import format_bytes

    return format_bytes(manifest.file_bytes)


_COLUMNS: list[Column[Any]] = [
    Column("id", lambda one: one.id),
    Column("cluster", _of(lambda manifest: manifest.cluster)),
    Column("index", _of(lambda manifest: str(manifest.index)), is_number=True),
    Column("made", _of(lambda manifest: moment(manifest.created_at_ms))),
    Column("size", _of(_size), is_number=True),
    Column("history", _of(lambda manifest: manifest.history), is_wide=True),
    Column("voters", _of(lambda manifest: ",".join(manifest.voters)), is_wide=True),
    Column("version", _of(lambda manifest: manifest.version), is_wide=True),
    Column("by", _of(lambda manifest: manifest.by), is_wide=True),
    Column("digest", _of(lambda manifest: manifest.digest), is_wide=True),
    Column("fault", lambda one: one.fault or ""),
]
