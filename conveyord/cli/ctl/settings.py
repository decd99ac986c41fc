"""`conveyorctl settings`: what operators may set for the whole cluster."""

from __future__ import annotations

import click

from conveyord.cli.ctl.asking import Asking, Reading, asks_nodes, expect_index_option, reads
from conveyord.cli.ctl.output import Column, show, show_done


@click.group()
def settings() -> None:
    """See and change settings of the cluster."""


@settings.command("list")
@reads
@asks_nodes()
def list_settings(asking: Asking, reading: Reading, output: str) -> None:
    """List all settings. CHANGED is the index of the last change, and empty for a default."""
    from conveyord.api.messages import Setting, SettingsList
    from conveyord.api.operations import SETTINGS_LIST

    reply = asking.read(SETTINGS_LIST, SettingsList(), reading)
    columns = (
        Column[Setting]("name", lambda setting: setting.name),
        Column[Setting]("value", lambda setting: str(setting.value), is_number=True),
        Column[Setting]("default", lambda setting: str(setting.default), is_number=True),
        Column[Setting]("least", lambda setting: str(setting.least), is_wide=True, is_number=True),
        Column[Setting]("most", lambda setting: str(setting.most), is_wide=True, is_number=True),
        Column[Setting]("changed", lambda setting: str(setting.changed or ""), is_number=True),
        Column[Setting]("what", lambda setting: setting.what),
    )
    show(reply, columns, reply.settings, output)


@settings.command("set")
@click.argument("name")
@click.argument("value", type=click.IntRange(min=0))
@expect_index_option
@asks_nodes()
def set_setting(name: str, value: int, expect_index: int | None, asking: Asking, output: str) -> None:
    """Change a setting, at once, for all nodes."""
    from conveyord.api.messages import SettingSet
    from conveyord.api.operations import SETTING_SET

    reply = asking.call(SETTING_SET, SettingSet(name=name, value=value, expect_index=expect_index))
    show_done(reply, f"{name} is {value}, from index {reply.changed} on", output)
