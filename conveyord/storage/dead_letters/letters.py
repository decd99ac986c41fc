"""What is asked of the dead letters, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from conveyord.core.flow.dead_letters import DeadLetter

LetterState = Literal["dead", "queued", "replayed"]


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A letter as it is kept. Times are microseconds since the epoch, given by whoever put it.

    id: given at the first failure of its key and never reused. first_micros, last_micros: of its first and
    newest failure; `letter.attempts` adds up over all of them. claims: the sinks that lack it, each with the number
    under which it is queued for replay to that sink, or None; one without claims was replayed and keeps no payload.
    came_from: the letter of which this failed in a later stage when it was replayed, 0 if there is none.
    edited: someone changed the payload since it failed. damage: why the payload cannot be read, None if it can;
    `letter.raw` and `letter.row` are None then.
    """

    id: int
    letter: DeadLetter
    first_micros: int
    last_micros: int
    claims: Mapping[str, int | None]
    came_from: int = 0
    edited: bool = False
    damage: str | None = None

    @property
    def state(self) -> LetterState:
        """`queued` as long as it is on its way to any sink."""
        if not self.claims:
            return "replayed"
        return "dead" if all(number is None for number in self.claims.values()) else "queued"


class Lane(NamedTuple):
    """Letters of one stage (as their keys name it) on their way to one sink: they go in the order of their numbers."""

    pipeline: str
    stage: str
    sink: str


class Claim(NamedTuple):
    """What one sink has to get of one letter."""

    letter: int
    sink: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those that meet every condition given. None is no condition.

    Times are those of the newest failure; `until_micros` is not included.
    """

    pipeline: str | None = None
    stage: str | None = None
    code: str | None = None
    ids: tuple[int, ...] | None = None
    since_micros: int | None = None
    until_micros: int | None = None

    @property
    def is_everything(self) -> bool:
        """Whether there is no condition at all."""
        return self == Selection()


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Group:
    """The letters of one cause: what failed in one stage with one code.

    Messages name values and places, so that nearly every one is different; the code is what failures of
    one cause share. `message` and `newest_id` are those of the newest letter, as a sample.
    Times are those of the first and of the newest failure of any of them.
    """

    pipeline: str
    stage: str
    code: str
    message: str
    newest_id: int
    count: int
    first_micros: int
    last_micros: int


class Counters(NamedTuple):
    """What became of the letters that are no longer dead, since the directory was made.

    read_again: deleted because no sink had passed their records, which a run read once more since.
    """

    replayed: int = 0
    expired: int = 0
    purged: int = 0
    read_again: int = 0
