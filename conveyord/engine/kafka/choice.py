"""Which topics a source reads: by name, or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

PATTERN_MARK = "^"
"""A topic that begins with this is a regular expression: librdkafka's own convention; no name has it."""


def pattern_mistake(text: str) -> str | None:
    """What is wrong with a name or an expression."""
    if not text.startswith(PATTERN_MARK):
        return None if _NAME.fullmatch(text) else f"{text!r} is no name of a topic: letters, digits, dot, _ and - only"
    try:
        re.compile(text)
    except re.error as error:
        return f"{text!r} is no regular expression: {error}"
    return None


_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class TopicChoice:
    """topics: names, and expressions that begin with `^` and must match a whole name. exclude: likewise."""

    topics: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    _taken: tuple[re.Pattern[str], ...] = field(init=False, repr=False)
    _left_out: tuple[re.Pattern[str], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_taken", _patterns(self.topics))
        object.__setattr__(self, "_left_out", _patterns(self.exclude))

    @property
    def names(self) -> tuple[str, ...]:
        """The topics that are named, and so must be there."""
        return tuple(text for text in self.topics if not text.startswith(PATTERN_MARK))

    @property
    def is_fixed(self) -> bool:
        """No expression is among them."""
        return len(self.names) == len(self.topics)

    @property
    def is_single(self) -> bool:
        """There is one topic, and there can be no other."""
        return self.is_fixed and len(self.topics) == 1

    @property
    def shown(self) -> str:
        """For messages."""
        return ", ".join(self.topics)

    @property
    def subscription(self) -> Sequence[str]:
        """As librdkafka takes it: it knows no `$` and no exclusion, so the answers are looked through again."""
        return self.topics

    def takes(self, name: str) -> bool:
        """Whether a topic is among them."""
        if any(pattern.fullmatch(name) for pattern in self._left_out):
            return False
        return any(pattern.fullmatch(name) for pattern in self._taken)


def _patterns(texts: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(text if text.startswith(PATTERN_MARK) else re.escape(text)) for text in texts)
