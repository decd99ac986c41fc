"""Editing one dead letter: what the editor is given, and what is made of what it gives back."""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING, BinaryIO

import click

from conveyord.cli.dlq_selection import opened_to_change
from conveyord.core.errors import ConfigError, ConveyordError, Corrupt, Refused

if TYPE_CHECKING:
    from conveyord.cli.options import Setting
    from conveyord.storage.dead_letters.letters import StoredLetter


def edited(stored: StoredLetter) -> bytes | None:
    """What a person made of a letter's row as JSON, or of its record, in $EDITOR. None if it was left as it is.

    Blocking. Raises Corrupt or Refused if there is nothing to start from, and ConfigError if nothing is left.
    """
    from conveyord.cli.dlq_rows import row_as_object

    letter = stored.letter
    if letter.row is not None:
        before = json.dumps(row_as_object(letter.row), ensure_ascii=False, indent=2).encode() + b"\n"
    elif letter.raw is not None:
        before = letter.raw
    elif stored.damage is not None:
        raise Corrupt(f"dead letter {stored.id} has nothing to edit: {stored.damage}; give new content with --set-raw")
    else:
        why = "it was replayed" if stored.state == "replayed" else "its source kept no bytes of the record"
        raise Refused(f"dead letter {stored.id} has nothing to edit: {why}")
    try:
        after = click.edit(before, extension=".json" if letter.row is not None else ".txt")
    except FileNotFoundError as error:
        raise Refused(f"the editor removed the file that it was to edit, {error.filename}; nothing changed") from error
    if after is None:
        return None
    if not before.endswith(b"\n"):
        after = after.removesuffix(b"\n")  # editors end a file with one, which the record had not
    _check_content(after, "what the editor gave back", stored.id)
    return None if after == before else after


def content_of(file: BinaryIO, option: str, letter_id: int) -> bytes:
    """What `file`, which was given with `option`, holds for a letter. Blocking. Raises ConfigError if it is blank."""
    content = file.read()
    _check_content(content, f"{option}: {file.name}", letter_id)
    return content


def _check_content(content: bytes, what: str, letter_id: int) -> None:
    """Raises ConfigError if `content` is blank: sources pass over such a record, so a replay would lose the letter."""
    if not content.strip():
        remedy = f"give all of it, or delete the letter with `conveyord dlq purge --id {letter_id}`"
        raise ConfigError(f"{what} is blank; {remedy}")


def save(
    setting: Setting,
    stored: StoredLetter,
    *,
    raw: bytes | None,
    row: bytes | None,
    as_is: bool,
    keep_on_failure: bool,
) -> None:
    """Store what replaces the record or, as JSON, the row of `stored`. Blocking.

    as_is: take a record whatever it looks like. keep_on_failure: put what a person wrote into a file if it cannot be
    stored, and name that in the error.
    Raises ConfigError if it does not fit, and Refused if the letter changed since it was read.
    """
    try:
        _save(setting, stored, raw=raw, row=row, as_is=as_is)
    except ConveyordError as error:
        if not keep_on_failure:
            raise
        option, content = ("--set-row", row) if raw is None else ("--set-raw", raw)
        handle, path = tempfile.mkstemp(prefix=f"conveyord-letter-{stored.id}-", suffix=".txt")
        with os.fdopen(handle, "wb") as file:
            file.write(content or b"")
        raise type(error)(f"{error}; what you wrote is in {path}, give it with {option}") from error


def _save(setting: Setting, stored: StoredLetter, *, raw: bytes | None, row: bytes | None, as_is: bool) -> None:
    from conveyord.cli.dlq_records import check_record

    stream = None
    if row is not None:
        if stored.letter.row is None:
            raise ConfigError(f"dead letter {stored.id} has no row, it failed as a record; give --set-raw")
        stream = _row(row, stored.letter.row)
    with opened_to_change(setting) as store:
        if store.get(stored.id) != stored:
            raise Refused(f"dead letter {stored.id} changed while it was edited; look at it and edit it again")
        is_record = stored.letter.key.stage == stored.letter.key.partition.source  # else the store refuses bytes
        if raw is not None and is_record and not as_is:
            check_record(stored, raw)
        store.edit(stored.id, raw=raw, row=stream)


def _row(text: bytes, former: bytes) -> bytes:
    from conveyord.cli.dlq_rows import row_from_json

    try:
        return row_from_json(text.decode("utf-8"), former)
    except UnicodeDecodeError as error:
        raise ConfigError(f"the edited row is not UTF-8: {error.reason} at byte {error.start}") from error
