"""Schemas that differ: how a table's schema grows, and how batches are brought to it without loss.

`grow` is what a sink calls per batch; `merge` answers the same question for schemas alone.

Where a value lands is decided per value, from the value and the target's type, never from its
neighbours in the batch, so that cutting batches differently after a restart changes nothing:

1. A value goes to its own column if that column can give it back: 2.0 may stand in a long column,
   2.5 may not; anything but binary may stand in a string column, as its JSON text.
2. Otherwise it goes to the sibling column named after its own type (`rating__double`).
3. Otherwise, or if that cell is taken, its text goes to `rating__json` (`rating__json__json`, ...).

Siblings stand in the same struct as their column. A list or map with an element that does not fit
moves as a whole. Fields without any type yet (null, a list of null, a struct of such) hold no
information: a target without them does not get them.
"""

from conveyord.engine.schema.contract import Breach, held_to
from conveyord.engine.schema.fit import fit
from conveyord.engine.schema.grow import grow
from conveyord.engine.schema.merge import merge
from conveyord.engine.schema.types import plain_type

__all__ = ["Breach", "fit", "grow", "held_to", "merge", "plain_type"]
