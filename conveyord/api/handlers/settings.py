"""Settings of the cluster."""

from __future__ import annotations

from conveyord.api.context import Caller, Context
from conveyord.api.messages import Changed, Setting, Settings, SettingSet, SettingsList
from conveyord.core.state.commands import SettingChange
from conveyord.core.state.settings import SETTINGS
from conveyord.storage.state.reading import StateView


async def list_(context: Context, _: Caller, request: SettingsList) -> Settings:
    """See `SettingsList`."""
    answer = await context.cluster.read(StateView.settings, stale=request.stale)
    return Settings(
        index=answer.index,
        settings=tuple(
            Setting(
                name=name,
                value=value,
                default=SETTINGS[name].default,
                least=SETTINGS[name].least,
                most=SETTINGS[name].most,
                what=SETTINGS[name].what,
                changed=changed,
            )
            for name, (value, changed) in sorted(answer.value.items())
            if name in SETTINGS  # one that a later version knows is in the state all the same
        ),
    )


async def set_(context: Context, caller: Caller, request: SettingSet) -> Changed:
    """See `SettingSet`."""
    return await context.changed(SettingChange(request.name, request.value, request.expect_index), caller)
