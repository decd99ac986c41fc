"""What operators may set for the whole cluster. All are whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from conveyord.core.state.commands import SettingChange
from conveyord.core.state.names import shown
from conveyord.core.state.replies import CONFLICT, INVALID, No, Ok
from conveyord.core.state.rows import SETTINGS as TOPIC
from conveyord.core.state.rows import Change, Decision, Moment, SettingRow, View, refused

TARGET_VOTERS = "target_voters"
DEAD_SERVER_SECONDS = "dead_server_seconds"
EVENTS_MAX = "events_max"
EVENT_BYTES_MAX = "event_bytes_max"
AUDIT_MAX = "audit_max"


class Setting(NamedTuple):
    """default: replicas rely on it until the setting is changed, so it must never be another. odd: no even number.

    zero: that 0 is allowed too, and means off.
    """

    default: int
    least: int
    most: int
    what: str
    odd: bool = False
    zero: bool = False

    def wrong(self, name: str, value: int) -> No | None:
        """Whether this cannot be set, and why."""
        if self.zero and value == 0:
            return None
        if not self.least <= value <= self.most:
            off = ", or 0 for off" if self.zero else ""
            return No(INVALID, f"{name} = {value}; write {self.least} to {self.most}{off}: {self.what}")
        if self.odd and value % 2 == 0:
            return No(INVALID, f"{name} = {value}; write an odd number, as {value} survive no more than {value - 1}")
        return None


SETTINGS = {
    TARGET_VOTERS: Setting(3, 1, 9, "how many routers vote", odd=True),
    DEAD_SERVER_SECONDS: Setting(0, 60, 30 * 86_400, "after which a member that is down is removed", zero=True),
    EVENTS_MAX: Setting(100_000, 16, 1_000_000, "events that are kept for watchers"),
    EVENT_BYTES_MAX: Setting(32 << 20, 1 << 20, 1 << 30, "bytes of the events that are kept"),
    AUDIT_MAX: Setting(100_000, 16, 1_000_000, "commands that the audit keeps"),
}


def value_of(view: View, name: str) -> int:
    """What a setting is."""
    row = view.setting(name)
    return SETTINGS[name].default if row is None else row.value


def check(command: SettingChange) -> No | None:
    """What can be said of it without the state."""
    setting = SETTINGS.get(command.name)
    if setting is None:
        return No(INVALID, f"there is no setting {shown(command.name)}; there are {', '.join(SETTINGS)}")
    return setting.wrong(command.name, command.value)


def decide(view: View, moment: Moment, command: SettingChange) -> Decision:
    """See `SettingChange`."""
    name, value = command.name, command.value
    row = view.setting(name)
    changed = row.changed if row else 0
    if command.expect_index is not None and command.expect_index != changed:
        return refused(
            CONFLICT,
            f"setting {name} was changed last at index {changed}, expected {command.expect_index}; read it again",
        )
    if value == value_of(view, name):
        return Decision(Ok(changed))
    event = Change(TOPIC, name, "put", bytes(msgpack.packb(value)))
    return Decision(Ok(moment.index), (SettingRow(name, value, moment.index),), (event,))
