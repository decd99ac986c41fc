"""`conveyord` of a version to come: it knows protocol 2 of the state and of RPC, with one command more.

It writes configuration entries whose keys begin with `v2-` by that command.
"""

from __future__ import annotations

from typing import Any

from conveyord.core.state import commands, config, machine
from conveyord.core.wire import heads

heads.PROTOCOL_MAX = 2
machine.PROTOCOL_MAX = 2


class ConfigPut2(commands.ConfigPut, frozen=True, tag="config.put2"):
    """As its elder."""

    protocol = 2


machine.HANDLERS[ConfigPut2] = machine.Handler(config.check_put, config.decide_put)
machine.MACHINE = machine.Machine(machine.HANDLERS)


def main() -> None:
    from conveyord.__main__ import main as conveyord
    from conveyord.cluster.member import Member

    propose = Member.propose

    async def propose_newer(self: Member, command: Any, **more: Any) -> Any:
        if isinstance(command, commands.ConfigPut) and command.key.startswith("v2-"):
            command = ConfigPut2(command.key, command.value, command.expect_index)
        return await propose(self, command, **more)

    Member.propose = propose_newer  # type: ignore[method-assign]
    conveyord()


if __name__ == "__main__":
    main()
