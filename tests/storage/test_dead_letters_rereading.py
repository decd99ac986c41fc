"""Letters of records that are read again: what is on its way to a sink is noted, and only that may go."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from conveyord.core.errors import Refused
from conveyord.storage.dead_letters.letters import Claim
from conveyord.storage.dead_letters.reader import DeadLetterReader
from tests.storage.dead_letters_rig import LANE, PIPELINE, letter, opened, queue

CLAIMED = Claim(1, LANE.sink)


def test_a_claim_is_on_its_way_only_if_it_was_expected_and_did_not_fail_meanwhile(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2), letter(3)], 1)
        claims = [Claim(each, LANE.sink) for each in (1, 2, 3)]
        store.expect(claims[:2])
        store.put([letter(1)], 2)
        store.come_again(claims)
        assert store.on_their_way(PIPELINE) == [claims[1]]
        store.put([letter(2)], 3)
        assert store.on_their_way(PIPELINE) == [], "it failed again"


def test_what_a_run_expects_is_on_its_way_no_more(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1)], 1)
        store.expect([CLAIMED])
        store.come_again([CLAIMED])
        with pytest.raises(Refused, match="dead letter 1 is of a record that a run was reading again"):
            store.edit(1, raw=b"mended")
    with opened(data_dir) as store:
        assert store.on_their_way(PIPELINE) == [CLAIMED], "also after a crash"
        store.expect([CLAIMED])
        assert store.on_their_way(PIPELINE) == []
        store.edit(1, raw=b"mended")


def test_an_expected_claim_is_not_queued_and_a_queued_one_not_expected(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1)], 1)
        queue(store)
        store.expect([CLAIMED])
        assert store.queued(LANE, 0, 9) == []
        queue(store)
        store.come_again([CLAIMED])
        assert store.on_their_way(PIPELINE) == []


def test_another_row_of_the_same_key_takes_no_place_while_it_is_read_again(data_dir: Path) -> None:
    """Whether what became of the former row arrives is known later; then it goes."""
    with opened(data_dir) as store:
        store.put([letter(1, raw=b"former")], 1)
        store.expect([CLAIMED])
        store.come_again([CLAIMED])
        store.put([letter(1, raw=b"other")], 2)
        assert {(stored.letter.raw, stored.letter.key.variant) for stored in store.select()} == {
            (b"former", -1),
            (b"other", 0),
        }
        store.give_up(PIPELINE, store.on_their_way(PIPELINE), copied_to=0)
        assert [stored.letter.raw for stored in store.select()] == [b"other"]


def test_an_index_of_the_version_before_is_read_and_goes_on(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2)], 1)
    index = data_dir / "dead-letters" / "index.db"
    with closing(sqlite3.connect(index)) as connection:
        connection.executescript("ALTER TABLE claims DROP COLUMN again; PRAGMA user_version = 4")
    with DeadLetterReader(data_dir) as reader:
        assert reader.count() == 2
    for _ in range(2):
        with opened(data_dir) as store:
            store.expect([CLAIMED])
            store.come_again([CLAIMED])
            assert store.on_their_way(PIPELINE) == [CLAIMED]
            assert store.count() == 2
