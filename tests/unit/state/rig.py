"""A state in dicts, for decisions without a disk."""

from __future__ import annotations

from collections.abc import Iterable

from conveyord.core.state.commands import Command, MemberJoin, TokenCreate
from conveyord.core.state.machine import MACHINE, Machine
from conveyord.core.state.replies import No, Ok
from conveyord.core.state.rows import (
    CONFIG,
    MEMBERS,
    STANDINGS,
    TOKENS,
    ClusterRow,
    ConfigHead,
    ConfigRow,
    Decision,
    Gone,
    MemberRow,
    Moment,
    SettingRow,
    StandingRow,
    TokenRow,
)

SESSION = 1


class Memory:
    """A `View` that carries decisions out. index: of the last command; at_ms: what it takes for the time."""

    def __init__(self, machine: Machine = MACHINE) -> None:
        self.machine = machine
        self.index = 0
        self.at_ms = 1_000
        self.the_cluster = ClusterRow()
        self.settings: dict[str, SettingRow] = {}
        self.rows: dict[str, dict] = {MEMBERS: {}, STANDINGS: {}, CONFIG: {}, TOKENS: {}}
        self.size = (0, 0)

    def do(self, command: Command, *, session: int = SESSION) -> Decision:
        """Decide on a command, and carry it out."""
        self.index += 1
        decision = self.machine.decide(self, Moment(self.index, self.at_ms), session, command)
        self.carry_out(decision)
        return decision

    def carry_out(self, decision: Decision) -> None:
        if isinstance(decision.reply, No):
            assert decision == Decision(decision.reply), "what is refused changes nothing"
        for row in decision.rows:
            match row:
                case Gone(topic, key):
                    del self.rows[topic][key]
                case ClusterRow():
                    self.the_cluster = row
                case SettingRow():
                    self.settings[row.name] = row
                case MemberRow():
                    self.rows[MEMBERS][row.node] = row
                case StandingRow():
                    self.rows[STANDINGS][row.node] = row
                case ConfigRow():
                    self.rows[CONFIG][row.key] = row
                case TokenRow():
                    self.rows[TOKENS][row.id] = row
        self.size = (self.size[0] + decision.grown[0], self.size[1] + decision.grown[1])

    def ok(self, command: Command, *, session: int = SESSION) -> int:
        """Its answer, as it must not be refused."""
        reply = self.do(command, session=session).reply
        assert isinstance(reply, Ok), reply
        return reply.value

    def no(self, command: Command, *, session: int = SESSION) -> tuple[str, str]:
        """Code and sentence, as it must be refused."""
        reply = self.do(command, session=session).reply
        assert isinstance(reply, No), reply
        assert len(reply.message) < 400
        assert reply.message.isascii()
        return reply.code, reply.message

    def cluster(self) -> ClusterRow:
        return self.the_cluster

    def setting(self, name: str) -> SettingRow | None:
        return self.settings.get(name)

    def member(self, node: str) -> MemberRow | None:
        return self.rows[MEMBERS].get(node)

    def members(self) -> Iterable[MemberRow]:
        return [row for _, row in sorted(self.rows[MEMBERS].items())]

    def standings(self) -> Iterable[StandingRow]:
        return [row for _, row in sorted(self.rows[STANDINGS].items())]

    def config(self, key: str) -> ConfigHead | None:
        row = self.rows[CONFIG].get(key)
        return row and ConfigHead(row.created, row.changed, row.size)

    def config_size(self) -> tuple[int, int]:
        return self.size

    def token(self, token: str) -> TokenRow | None:
        return self.rows[TOKENS].get(token)

    def tokens(self) -> Iterable[TokenRow]:
        return [row for _, row in sorted(self.rows[TOKENS].items())]


def join(node: str = "n1", incarnation: int = 1, **other: object) -> MemberJoin:
    """A node that was started."""
    fields = {
        "rpc_address": "10.0.0.1:7400",
        "http_address": "10.0.0.1:7480",
        "roles": ("router", "sidecar"),
        "version": "1.2.3",
        "protocol_min": 1,
        "protocol_max": 1,
    } | other
    return MemberJoin(node=node, incarnation=incarnation, **fields)


def token(name: str = "t1", role: str = "admin", **other: object) -> TokenCreate:
    """A token that is made."""
    return TokenCreate(token=name, name="for tests", role=role, **({"salt": b"s" * 16, "hash": b"h" * 32} | other))
