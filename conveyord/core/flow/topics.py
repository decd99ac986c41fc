"""Topics: what the names of a log's partitions, and of replays of dead letters, say of them."""

from __future__ import annotations

import re

from conveyord.core.flow.positions import Partition

_PARTITION = re.compile(r"(?P<topic>[^\[\]]+)\[[0-9]+\](?:@[0-9a-f]{8})?")


SHARE_MARK = "|"
"""Stands before the share of a sink in the name of a replay's partition. No stage and no topic has it in its name."""


def share_of_lane(partition: Partition) -> str | None:
    """For which share of a sink (see `Sink.share_of`) the letters of a replay are; None: for all of it."""
    return partition.name.partition(SHARE_MARK)[2] or None


def topic_of(partition: Partition) -> str | None:
    """The topic of a partition named `<topic>[<number>]`, or `<topic>[<number>]@<8 hex digits>` where a topic was
    deleted and made anew. None if its name has another form.
    """
    match = _PARTITION.fullmatch(partition.name)
    return None if match is None else match["topic"]
