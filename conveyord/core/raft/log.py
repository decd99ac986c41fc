"""The log as the core sees it: where every entry's term is known, and the newest entries are at hand.

Terms never fall along the log, so the whole of it is a few runs of equal terms: `term` answers for every index from
the base on without a look at the disk. Entries themselves are here while they may still change, and as many of the
older ones as the window takes; others must be fetched.

| place | meaning |
|---|---|
| base | the last index that was compacted away; its term and chain are known |
| window | the first index whose entry is here |
| stable | the last index that is on disk: what is above may vanish in a crash |
| last | the last index |
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from conveyord.core.errors import Corrupt
from conveyord.core.raft.types import ENTRY_BYTES, Entry, Kind, Mark, chain_after, make_entries

SLACK_SHARE = 8  # the window is cut when it is an eighth too big, not at every entry


class Log:
    """Not thread-safe; indices are checked where a wrong one could only be a bug of ours, with AssertionError.

    last, stable: see the table. `last` is only read from outside; `stable` is set by who hears of writes.
    """

    def __init__(self, base: Mark, *, runs: Sequence[tuple[int, int]] = (), entries: Sequence[Entry] = ()) -> None:
        """Everything given is on disk. runs: (first index, term) for what lies between `base` and `entries`."""
        self._base = base
        self._runs = [(base.index, base.term)]
        for first, term in runs:
            self._run(first, term)
        self._entries = list[Entry]()
        # Bytes up to and with each entry of the window: what some of them count for is then a difference.
        self._ends = list[int]()
        self._begin = 0  # of the window, likewise
        self.last = entries[0].index - 1 if entries else base.index
        self._push(entries)
        for entry in entries:
            self._run(entry.index, entry.term)
        self.stable = self.last

    def _run(self, index: int, term: int) -> None:
        if term != self._runs[-1][1]:
            self._runs.append((index, term))

    @property
    def base(self) -> Mark:
        """Where the log begins."""
        return self._base

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._runs[-1][1]

    @property
    def window(self) -> int:
        """The first index whose entry is here; `last` + 1 if none is."""
        return self._entries[0].index if self._entries else self.last + 1

    @property
    def window_bytes(self) -> int:
        """Of the entries that are here."""
        return self._size(0, len(self._ends))

    def _size(self, at: int, end: int) -> int:
        """Of entries of the window, by their places in it."""
        return self._end_of(end) - self._end_of(at)

    def _end_of(self, count: int) -> int:
        """Where the first `count` entries of the window end."""
        return self._ends[count - 1] if count else self._begin

    def term(self, index: int) -> int | None:
        """The term at an index; None if it lies before the base or after the end."""
        if not self._base.index <= index <= self.last:
            return None
        first, term = self._runs[-1]
        if index >= first:
            return term  # as nearly always
        return self._runs[bisect_right(self._runs, index, key=_first) - 1][1]

    def chain(self, index: int) -> bytes | None:
        """The rolling hash at an index; None if its entry is not here."""
        if index == self._base.index:
            return self._base.chain
        found = self.entry(index)
        return None if found is None else found.chain

    def entry(self, index: int) -> Entry | None:
        """The entry at an index; None if it is not here."""
        at = index - self.window
        return self._entries[at] if 0 <= at < len(self._entries) else None

    def slice(self, first: int, end: int, bytes_max: int) -> tuple[Entry, ...] | None:
        """Entries of `[first, end)`: the first one, and as many as `bytes_max` takes; None if `first` is not here."""
        at = first - self.window
        if at < 0:
            return None
        end = min(end - self.window, len(self._ends))
        if end <= at:
            return ()
        return tuple(self._entries[at : max(at + 1, bisect_right(self._ends, self._end_of(at) + bytes_max, at, end))])

    def size(self, first: int, end: int) -> int:
        """Of the entries of `[first, end)`, which are all here, or of none if there are none."""
        at = self.window
        assert first >= at or first >= end, (first, end, at)
        return self._size(first - at, end - at) if first < end else 0

    def tail(self, first: int) -> tuple[Entry, ...]:
        """All entries from `first` on, which are here."""
        assert first >= self.window, (first, self.window)
        return tuple(self._entries[first - self.last - 1 :]) if first <= self.last else ()

    def append(self, term: int, kind: Kind, data: bytes) -> Entry:
        """Make the next entry: that of a leader."""
        return self.append_all(term, kind, (data,))[0]

    def append_all(self, term: int, kind: Kind, datas: Sequence[bytes]) -> list[Entry]:
        """Make the next entries: those of a leader."""
        chain = self.chain(self.last)
        assert chain is not None, self.last
        made = make_entries(chain, self.last + 1, term, kind, datas)
        if made:
            self._run(self.last + 1, term)
            self._push(made)
        return made

    def extend(self, entries: Sequence[Entry]) -> None:
        """Take entries that follow the last one, all of them whole (`are_whole`): those of a leader.

        Raises Corrupt if their chain is not ours.
        """
        previous = self.chain(self.last)
        for expected, entry in enumerate(entries, self.last + 1):
            index, term, _, _, crc, chain = entry
            assert index == expected, (index, expected)
            if previous is not None and chain != chain_after(previous, index, term, crc):
                raise Corrupt(
                    f"the logs of this node and of its leader differ at or before entry {index} although their "
                    f"terms agree; one of the two disks is damaged: run `conveyordctl raft verify` on both"
                )
            previous = chain
        if entries and entries[-1].term != self.last_term:  # terms never fall, so no other has a new one either
            for entry in entries:
                self._run(entry.index, entry.term)
        self._push(entries)

    def _push(self, entries: Sequence[Entry]) -> None:
        sizes = [len(entry.data) + ENTRY_BYTES for entry in entries]
        if sizes:
            sizes[0] += self._end_of(len(self._ends))
        self._entries += entries
        self._ends += accumulate(sizes)
        self.last += len(entries)

    def truncate(self, first: int) -> None:
        """Drop the entries from `first` on, which are all here."""
        at = first - self.window
        assert at >= 0, (first, self.window)
        assert first > self._base.index, (first, self._base)
        del self._entries[at:], self._ends[at:]
        self.last = first - 1
        self.stable = min(self.stable, self.last)
        while self._runs[-1][0] > self.last:
            self._runs.pop()

    def conflict(self, entries: Sequence[Entry]) -> int | None:
        """The index of the first of `entries` that the log lacks or has with another term; None if it has all."""
        return next((entry.index for entry in entries if self.term(entry.index) != entry.term), None)

    def last_not_above(self, index: int, term: int) -> int:
        """The last index up to `index` whose term is not above `term`, or the base: where two logs may still agree."""
        at = bisect_right(self._runs, term, key=_second)
        end = self._runs[at][0] - 1 if at < len(self._runs) else self.last
        return max(self._base.index, min(index, end))

    def compact(self, base: Mark) -> None:
        """Begin after `base`, a place in this log."""
        assert base.index >= self._base.index, (base, self._base)
        self._drop_before(base.index + 1)
        at = bisect_right(self._runs, base.index, key=_first) - 1
        self._base, self._runs = base, [(base.index, base.term), *self._runs[at + 1 :]]

    def reset(self, base: Mark) -> None:
        """Forget everything: a snapshot takes its place."""
        self._base, self._runs, self._entries = base, [(base.index, base.term)], []
        self._ends, self._begin, self.last, self.stable = [], 0, base.index, base.index

    def shrink(self, keep_from: int, bytes_max: int) -> None:
        """Let entries before `keep_from` go, oldest first, until the window has no more than `bytes_max`."""
        if self.window_bytes <= bytes_max + bytes_max // SLACK_SHARE:
            return
        too_old = self._ends[-1] - bytes_max  # whoever ends before that goes, and the one who ends there
        self._drop_before(min(keep_from, self.window + bisect_left(self._ends, too_old) + 1))

    def _drop_before(self, first: int) -> None:
        at = min(max(0, first - self.window), len(self._entries))
        self._begin = self._end_of(at)
        del self._entries[:at], self._ends[:at]


def _first(run: tuple[int, int]) -> int:
    return run[0]


def _second(run: tuple[int, int]) -> int:
    return run[1]
