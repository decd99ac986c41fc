"""`dlq`: the records that failed for ever: looking at them, mending them, taking them away."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from conveyord.cli.dlq_replay import replay
from conveyord.cli.dlq_selection import (
    ID_MAX,
    find,
    moment,
    opened_to_change,
    selection_of,
    selection_options,
)
from conveyord.cli.exits import print_json, reports_failures
from conveyord.cli.options import GivenPath, config_option, data_dir_option, load_setting, output_option

if TYPE_CHECKING:
    from conveyord.storage.dead_letters.letters import Group, StoredLetter

MESSAGE_CHARS_SHOWN = 80  # of the sample message of a group; `show` and -o json have all of it


@click.group()
def dlq() -> None:
    """Look into dead letters, mend them, replay them.

    A dead letter is one record that failed for ever in a pipeline with dlq:, with all that is needed to
    try it again.
    """


@dlq.command("list")
@selection_options
@click.option("--each", is_flag=True, help="One line per letter, instead of one per cause.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Lines of --each at most.")
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def list_letters(
    pipeline: str | None,
    stage: str | None,
    code: str | None,
    ids: tuple[int, ...],
    since: str | None,
    each: bool,
    limit: int,
    data_dir: Path | None,
    config_path: Path | None,
    output: str,
) -> None:
    """List dead letters by cause.

    A cause is a pipeline, a stage and a code; the newest message is shown as a sample. A pipeline may run
    meanwhile. Replayed letters are not listed.
    """
    from conveyord.core.units import counted
    from conveyord.storage.dead_letters.reader import DeadLetterReader

    setting = load_setting(config_path, data_dir)
    selection = selection_of(pipeline, stage, code, ids, since)
    with DeadLetterReader(setting.data_dir) as reader:
        if each:
            shown = list(islice(reader.select(selection, payloads=False), limit))
            _print_each(shown, reader.count(selection), output)
            return
        groups, gone = reader.groups(selection), reader.counters()
    total = sum(group.count for group in groups)
    if output == "json":
        print_json({"total": total, "groups": [_as_object(group) for group in groups]})
        return
    if groups:
        _print_groups(groups)
    past = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in gone._asdict().items() if count)
    click.echo(
        f"{counted(total, 'dead letter')} in {setting.data_dir}" + (f"; so far {past}" if past else ""), err=True
    )


@dlq.command("show")
@click.argument("letter_id", metavar="ID", type=click.IntRange(1, ID_MAX))
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def show(letter_id: int, data_dir: Path | None, config_path: Path | None, output: str) -> None:
    """Show one dead letter: where its record stands, why it failed, and what it holds."""
    from conveyord.cli.dlq_letters import as_object, as_text

    stored = find(load_setting(config_path, data_dir).data_dir, letter_id)
    if output == "json":
        print_json(as_object(stored))
    else:
        click.echo(as_text(stored))


@dlq.command("export")
@click.argument("file", type=GivenPath(dir_okay=False))
@selection_options
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def export_letters(
    file: Path,
    pipeline: str | None,
    stage: str | None,
    code: str | None,
    ids: tuple[int, ...],
    since: str | None,
    data_dir: Path | None,
    config_path: Path | None,
    output: str,
) -> None:
    """Write dead letters to FILE, whose name ends in .jsonl or .parquet.

    Nothing is taken away. An existing file is replaced once the new one is complete.
    """
    from conveyord.cli.dlq_letters import export
    from conveyord.core.units import counted
    from conveyord.storage.dead_letters.reader import DeadLetterReader

    setting = load_setting(config_path, data_dir)
    selection = selection_of(pipeline, stage, code, ids, since)
    with DeadLetterReader(setting.data_dir) as reader:
        done = export(file, reader.select(selection))
    if output == "json":
        print_json({"file": str(file), **done._asdict()})
    else:
        click.echo(f"{counted(done.letters, 'dead letter')} written to {file}")
    if done.without_content:
        about = f"{done.damaged:,} damaged, which `conveyord dlq show ID` explains" if done.damaged else "none damaged"
        click.echo(f"{done.without_content:,} of them without content, {about}", err=True)


@dlq.command("purge")
@selection_options
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def purge(
    pipeline: str | None,
    stage: str | None,
    code: str | None,
    ids: tuple[int, ...],
    since: str | None,
    everything: bool,
    yes: bool,
    data_dir: Path | None,
    config_path: Path | None,
    output: str,
) -> None:
    """Delete dead letters for good, and give their disk space back.

    Needs a selection or --all, and asks before it deletes. No pipeline may run meanwhile.
    """
    from conveyord.core.errors import ConfigError
    from conveyord.core.units import counted
    from conveyord.storage.dead_letters.reader import DeadLetterReader

    setting = load_setting(config_path, data_dir)
    selection = selection_of(pipeline, stage, code, ids, since)
    if selection.is_everything != everything:
        raise ConfigError("say which dead letters: give a selection such as --code or --id, or --all, not both")
    for letter_id in ids:
        find(setting.data_dir, letter_id)
    with DeadLetterReader(setting.data_dir) as reader:
        count = reader.count(selection)
    if count and not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{counted(count, 'dead letter')} would be deleted and nobody can be asked; pass --yes")
        if not click.confirm(f"Delete {counted(count, 'dead letter')} for good?", err=True):
            click.echo("nothing is deleted", err=True)
            return
    purged = 0
    if setting.data_dir.is_dir():  # owning a directory makes it
        with opened_to_change(setting) as store:
            purged = store.purge(selection)
    if output == "json":
        print_json({"purged": purged})
    else:
        click.echo(f"{counted(purged, 'dead letter')} deleted")


@dlq.command("edit")
@click.argument("letter_id", metavar="ID", type=click.IntRange(1, ID_MAX))
@click.option("--set-raw", type=click.File("rb"), metavar="FILE", help="Take the record from FILE, or - for stdin.")
@click.option("--set-row", type=click.File("rb"), metavar="FILE", help="Take the row, a JSON object, from FILE or -.")
@click.option("--as-is", is_flag=True, help="Take a record that does not look like one of its source.")
@data_dir_option
@config_option
@output_option("text", "json")
@reports_failures
def edit(
    letter_id: int,
    set_raw: BinaryIO | None,
    set_row: BinaryIO | None,
    as_is: bool,
    data_dir: Path | None,
    config_path: Path | None,
    output: str,
) -> None:
    """Change what a dead letter holds, before it is replayed.

    Opens $EDITOR on the record as it stands in the source, or on the row as JSON if it failed in a
    later stage. A record must be one of its source, a row have each of its columns once. No pipeline
    may run meanwhile.
    """
    from conveyord.cli.dlq_edit import content_of, edited, save
    from conveyord.core.errors import ConfigError

    setting = load_setting(config_path, data_dir)
    if set_raw is not None and set_row is not None:
        raise ConfigError("--set-raw and --set-row exclude each other: a letter has one of them to edit")
    stored = find(setting.data_dir, letter_id)
    raw = None if set_raw is None else content_of(set_raw, "--set-raw", letter_id)
    row = None if set_row is None else content_of(set_row, "--set-row", letter_id)
    if raw is None and row is None:
        with opened_to_change(setting):
            pass  # whoever is refused should know before writing, not after
        text = edited(stored)
        if text is None:
            click.echo("nothing was changed", err=True)
            return
        raw, row = (text, None) if stored.letter.row is None else (None, text)
        save(setting, stored, raw=raw, row=row, as_is=as_is, keep_on_failure=True)
    else:
        save(setting, stored, raw=raw, row=row, as_is=as_is, keep_on_failure=False)
    if output == "json":
        print_json({"id": letter_id, "edited": True})
    else:
        click.echo(f"dead letter {letter_id} is changed")


dlq.add_command(replay)


def _as_object(group: Group) -> dict[str, object]:
    return {
        "pipeline": group.pipeline,
        "stage": group.stage,
        "code": group.code,
        "message": group.message,
        "newest": group.newest_id,
        "count": group.count,
        "first": moment(group.first_micros),
        "last": moment(group.last_micros),
    }


def _print_groups(groups: list[Group]) -> None:
    from conveyord.cli.dlq_letters import printable

    head = ("count", "pipeline", "stage", "code", "first", "last", "newest", "message")
    _print_aligned(
        head,
        [
            (
                f"{group.count:,}",
                group.pipeline,
                group.stage,
                group.code,
                moment(group.first_micros),
                moment(group.last_micros),
                str(group.newest_id),
                printable(group.message),
            )
            for group in groups
        ],
    )


def _print_each(letters: list[StoredLetter], total: int, output: str) -> None:
    from conveyord.cli.dlq_letters import facts_of, place_of, printable

    if output == "json":
        print_json({"total": total, "letters": [facts_of(stored) for stored in letters]})
        return
    rows = [
        (
            str(stored.id),
            stored.state,
            stored.letter.key.pipeline,
            stored.letter.key.stage,
            stored.letter.code,
            printable(place_of(stored)),
            printable("; ".join(sorted(stored.claims))),
            printable(stored.letter.message),
        )
        for stored in letters
    ]
    _print_aligned(("id", "state", "pipeline", "stage", "code", "record", "lacked by", "message"), rows)
    if total > len(letters):
        click.echo(f"and {total - len(letters):,} more; use --limit, or export", err=True)


def _print_aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns to the left, except that the last one is cut instead of padded."""
    widths = [max(len(row[index]) for row in (head, *rows)) for index in range(len(head) - 1)]
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        last = row[-1] if len(row[-1]) <= MESSAGE_CHARS_SHOWN else row[-1][: MESSAGE_CHARS_SHOWN - 1] + "…"
        click.echo("  ".join([*cells, last]).rstrip())
