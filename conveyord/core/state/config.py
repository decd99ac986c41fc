"""Configuration entries: keys and values with compare-and-set."""

from __future__ import annotations

from conveyord.core.state.commands import ConfigDelete, ConfigPut
from conveyord.core.state.names import CONFIG_BYTES_MAX, CONFIG_ENTRIES_MAX, CONFIG_VALUE_BYTES_MAX, wrong_key
from conveyord.core.state.replies import CONFLICT, INVALID, LIMIT, NOT_FOUND, No, Ok
from conveyord.core.state.rows import CONFIG, Change, ConfigHead, ConfigRow, Decision, Gone, Moment, View, refused


def check_put(command: ConfigPut) -> No | None:
    """What can be said of it without the state."""
    if wrong := wrong_key(command.key):
        return wrong
    if (size := len(command.value)) > CONFIG_VALUE_BYTES_MAX:
        return No(INVALID, f"{command.key}: {size} bytes, at most {CONFIG_VALUE_BYTES_MAX}; keep them elsewhere")
    return None


def decide_put(view: View, moment: Moment, command: ConfigPut) -> Decision:
    """See `ConfigPut`."""
    key, value, index = command.key, command.value, moment.index
    head = view.config(key)
    if command.expect_index is not None and (wrong := _unexpected(key, head, command.expect_index)):
        return Decision(wrong)
    size = len(key) + len(value)
    created, more, grown = (index, 1, size) if head is None else (head.created, 0, size - head.size)
    entries, total = view.config_size()
    if entries + more > CONFIG_ENTRIES_MAX:
        return refused(LIMIT, f"{key}: there are {entries} configuration entries, at most that many; delete some")
    if grown > 0 and total + grown > CONFIG_BYTES_MAX:
        return refused(
            LIMIT, f"{key}: the configuration would have {total + grown} bytes, at most {CONFIG_BYTES_MAX}; delete some"
        )
    row = ConfigRow(key, created, index, size, value)
    return Decision(Ok(index), (row,), (Change(CONFIG, key, "put", value),), (more, grown))


def check_delete(command: ConfigDelete) -> No | None:
    """What can be said of it without the state."""
    return wrong_key(command.key)


def decide_delete(view: View, moment: Moment, command: ConfigDelete) -> Decision:
    """See `ConfigDelete`."""
    key = command.key
    head = view.config(key)
    if command.expect_index is not None and (wrong := _unexpected(key, head, command.expect_index)):
        return Decision(wrong)
    if head is None:
        return refused(NOT_FOUND, f"there is no configuration entry {key}; nothing to delete")
    event = Change(CONFIG, key, "delete", None)
    return Decision(Ok(moment.index), (Gone(CONFIG, key),), (event,), (-1, -head.size))


def _unexpected(key: str, head: ConfigHead | None, expected: int) -> No | None:
    changed = head.changed if head else 0
    if changed == expected:
        return None
    if expected == 0:
        return No(CONFLICT, f"configuration entry {key} is there, changed last at index {changed}; expected none")
    found = f"was changed last at index {changed}" if head else "is not there"
    return No(CONFLICT, f"configuration entry {key} {found}, expected index {expected}; read it again")
