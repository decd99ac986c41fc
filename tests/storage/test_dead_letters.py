"""Dead letters: one per key, durable, found by cause, replayed at most once, within a budget and a retention."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from conveyord.core.errors import ConfigError, Refused, StorageFull
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER
from conveyord.storage.dead_letters.letters import EVERYTHING, Claim, Counters, Selection
from conveyord.storage.dead_letters.reader import DeadLetterReader
from conveyord.storage.dead_letters.store import DeadLetterStore
from tests.storage.dead_letters_rig import DAY_MICROS, LANE, PIPELINE, held, letter, opened, queue, segments


def test_a_letter_comes_back_as_it_was_put(data_dir: Path) -> None:
    given = [letter(1, raw=b"\xff\x00"), letter(2, raw=None, row=b"stream", stage="clean", part=3, attempts=4)]
    with opened(data_dir) as store:
        store.put(given, 17)
    with opened(data_dir) as store, DeadLetterReader(data_dir) as reader:
        assert [stored.letter for stored in store.select()] == given
        assert list(reader.select()) == list(store.select())
        assert [stored.letter.raw for stored in reader.select(payloads=False)] == [None, None]
        assert {(s.id, s.first_micros, s.last_micros, s.state, s.damage) for s in store.select()} == {
            (1, 17, 17, "dead", None),
            (2, 17, 17, "dead", None),
        }


def test_what_fails_again_replaces_itself_and_keeps_id_and_first_time(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1, attempts=2), letter(2)], 10)
        again = letter(1, attempts=3, code="WORSE", message="again", raw=b"new")
        store.put([again], 20)
        stored = store.get(1)
        assert stored is not None
        assert stored.letter == replace(again, attempts=5)
        assert (stored.first_micros, stored.last_micros) == (10, 20)
        assert store.count() == 2


def test_a_key_twice_in_one_put_is_two_letters_and_takes_their_places_again(data_dir: Path) -> None:
    with opened(data_dir) as store:
        for at in (1, 2):
            store.put([letter(1, raw=b"a"), letter(1, raw=b"b"), letter(1, raw=b"a")], at)
            found = [(stored.id, stored.letter.raw, stored.letter.attempts) for stored in store.select()]
            assert found == [(1, b"a", at), (2, b"b", at), (3, b"a", at)]
        variants = [replace(stored.letter, attempts=1) for stored in store.select()]
        store.put(variants[1:], 3)
        assert [stored.letter.attempts for stored in store.select()] == [2, 3, 3], "what is sent keeps its variant"
        assert given_up(store, 1, 2, 3, copied_to=2) == 3
        store.put([letter(1, raw=b"b"), letter(1, raw=b"a"), letter(1, raw=b"a")], 4)
        *copied_before, new = [(stored.id, stored.letter.raw) for stored in store.select()]
        assert copied_before == [(1, b"a"), (2, b"b")], "the same rows as before have their ids"
        assert new[0] > 3


def test_nothing_is_created_before_the_first_letter(data_dir: Path) -> None:
    with opened(data_dir, retention_seconds=1.0) as store, DeadLetterReader(data_dir) as reader:
        store.put([], 1)
        assert (store.groups(), store.get(1), store.counters()) == ([], None, Counters())
        assert (queue(store), store.settle(LANE, 9, 1), store.successors("a", [1])) == (0, [], [])
        assert store.purge(EVERYTHING) == store.withdraw([Claim(1, "a")]) == store.expire(5) == store.used_bytes() == 0
        assert (store.newer_than(PIPELINE, 0, 9), store.last_id(PIPELINE), store.queued(LANE, 0, 9)) == ([], 0, [])
        assert list(data_dir.iterdir()) == []
        assert list(reader.select()) == []
        store.put([letter(1)], 1)
        assert reader.count() == 1, "a reader that was there before sees the first letter"


def test_groups_are_by_cause_with_the_newest_message(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(n, code="A", message=f"value {n}") for n in range(3)], 10)
        store.put([letter(n, code="B", stage="clean") for n in range(5)], 20)
        store.put([letter(9, code="A", message="value 9"), letter(9, code="A", pipeline="default/other")], 30)
        store.put([letter(0, code="A", message="value 0 again")], 40)
    with DeadLetterReader(data_dir) as reader:
        groups = [
            (g.pipeline, g.stage, g.code, g.message, g.count, g.first_micros, g.last_micros) for g in reader.groups()
        ]
        assert groups == [
            (PIPELINE, "clean", "B", "record 4 is bad", 5, 20, 20),
            (PIPELINE, "source", "A", "value 9", 4, 10, 40),
            ("default/other", "source", "A", "record 9 is bad", 1, 30, 30),
        ]
        assert [g.count for g in reader.groups(Selection(pipeline=PIPELINE, since_micros=30))] == [2]


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        (Selection(), [1, 2, 3, 4]),
        (Selection(pipeline="default/other"), [4]),
        (Selection(stage="clean"), [3]),
        (Selection(code="B", stage="source"), [2]),
        (Selection(ids=(4, 2, 99)), [2, 4]),
        (Selection(ids=()), []),
        (Selection(ids=tuple(range(1, 100_000))), [1, 2, 3, 4]),
        (Selection(since_micros=2), [2, 3, 4]),
        (Selection(since_micros=2, until_micros=4), [2, 3]),
        (Selection(code="it's; --"), []),
    ],
)
def test_a_selection_means_what_meets_all_its_conditions(data_dir: Path, selection: Selection, ids: list[int]) -> None:
    with opened(data_dir) as store:
        others = [letter(2, code="B"), letter(3, code="B", stage="clean"), letter(4, pipeline="default/other")]
        for at, one in enumerate([letter(1), *others], start=1):
            store.put([one], at)
        assert [stored.id for stored in store.select(selection)] == ids
        assert store.count(selection) == len(ids)
        assert store.purge(selection) == len(ids)
        assert {stored.id for stored in store.select()} == {1, 2, 3, 4} - set(ids)


def test_copies_go_on_after_the_last_id(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2), letter(3, pipeline="default/other")], 1)
        assert store.last_id(PIPELINE) == 2
        store.put([letter(1), letter(4)], 2)
        assert [stored.letter.key.offset for stored in store.newer_than(PIPELINE, 2, 10)] == [4]
        assert [stored.id for stored in store.newer_than(PIPELINE, 0, 2)] == [1, 2]


def test_a_message_that_sqlite_cannot_hold_is_escaped_and_cut(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1, message="a\ud800b\0c"), letter(2, message="x" * 10_000)], 1)
        messages = [stored.letter.message for stored in store.select()]
        assert messages[0] == "a\\ud800b\0c"
        assert (len(messages[1]), messages[1][-1]) == (4096, "…")


# -------------------------------------------------------------------- replay


def sequences(store, after: int = 0) -> list[tuple[int, int]]:
    return [(number, stored.id) for number, stored in store.queued(LANE, after, 100)]


def test_sequence_numbers_grow_for_ever_and_are_never_given_again(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(n) for n in range(3)] + [letter(9, pipeline="default/other")], 1)
        assert queue(store) == 3
        assert queue(store) == 0, "what is queued is not queued twice"
        assert sequences(store) == [(1, 1), (2, 2), (3, 3)]
        assert sequences(store, 2) == [(3, 3)]
        store.purge(Selection(ids=(2, 3)))
        store.settle(LANE, 3, 2)
    with opened(data_dir) as store:
        store.put([letter(1)], 3)
        assert queue(store) == 1
        assert [number for number, _ in store.queued(LANE, 0, 9)] == [4]
        other = LANE._replace(pipeline="default/other")
        assert queue(store, lane=other) == 1
        assert [number for number, _ in store.queued(other, 0, 9)] == [1]


def test_what_settles_is_replayed_and_its_payload_dropped(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(n, text="x" * 100_000) for n in range(3)], 1)
        before = store.used_bytes()
        queue(store)
        assert store.settle(LANE, 2, 5) == [1, 2]
        assert store.settle(LANE, 2, 6) == []
        assert sequences(store) == [(3, 3)]
        gone = store.get(1)
        assert gone is not None
        assert (gone.state, gone.letter.raw, gone.claims, gone.damage) == ("replayed", None, {}, None)
        assert [stored.id for stored in store.select()] == [3]
        assert store.counters() == Counters(replayed=2)
        assert store.settle(LANE, 3, 7) == [3]
        store.put([letter(50)], 8)
        store.purge(Selection(ids=(4,)))
        assert store.used_bytes() < before - 250_000
        assert segments(data_dir) == []


def test_what_fails_again_in_the_replay_does_not_settle(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2)], 1)
        queue(store)
        store.put([letter(1, message="still bad")], 2)
        assert store.settle(LANE, 2, 3) == [2]
        (stored,) = store.select()
        assert (stored.id, stored.state, stored.letter.message) == (1, "dead", "still bad")
        store.put([letter(2)], 4)
        assert store.get(2).state == "dead", "what was replayed and fails later is dead again"


def test_what_is_withdrawn_does_not_settle(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2)], 1)
        queue(store)
        assert store.withdraw([Claim(1, LANE.sink), Claim(77, LANE.sink)]) == 1
        assert store.settle(LANE, 2, 3) == [2]
        assert [(stored.id, stored.state) for stored in store.select()] == [(1, "dead")]


# -------------------------------------------------------------------- edit


def test_an_edit_replaces_the_record_and_is_remembered(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1)], 1)
        store.edit(1, raw=b"mended")
        stored = store.get(1)
        assert (stored.letter.raw, stored.edited, stored.last_micros) == (b"mended", True, 1)
        store.put([letter(1)], 2)
        assert not store.get(1).edited, "what fails again comes with what failed"


def test_an_edited_row_keeps_the_record_beside_it(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1, row=b"old", stage="clean")], 1)
        store.edit(1, row=b"new")
        assert (store.get(1).letter.raw, store.get(1).letter.row) == (b"raw 1", b"new")


def test_an_edit_that_could_double_or_lose_a_row_is_refused(data_dir: Path) -> None:
    with opened(data_dir) as store:
        with pytest.raises(ConfigError, match="there is no dead letter 1"):
            store.edit(1, raw=b"x")
        store.put([letter(1, row=b"old", stage="clean"), letter(2), letter(3)], 1)
        with pytest.raises(Refused, match="letter 1 failed at 'clean' as a row; edit the row"):
            store.edit(1, raw=b"x")
        queue(store, Selection(ids=(2, 3)))
        store.settle(LANE, 1, 2)
        with pytest.raises(Refused, match="letter 2 was replayed"):
            store.edit(2, raw=b"x")
        with pytest.raises(Refused, match="letter 3 is queued for replay and may have arrived already"):
            store.edit(3, raw=b"x")


# -------------------------------------------------------------------- budget and retention


def test_beyond_the_budget_a_put_is_refused_with_figures_and_remedies(data_dir: Path) -> None:
    with opened(data_dir, budget_bytes=1024 * 1024) as store:
        kept = 0
        with pytest.raises(StorageFull) as refused:
            for kept in range(100):
                store.put([letter(kept, text="x" * 50_000)], kept)
        assert "dead letters take" in str(refused.value)
        assert "dead_letters.budget, 1.00 MiB" in str(refused.value)
        assert "`conveyord dlq purge`" in str(refused.value)
        assert set(held(store)) == set(range(kept)), "what was acknowledged stays"
        assert store.used_bytes() <= 1024 * 1024
        assert sum(path.stat().st_size for path in segments(data_dir)) <= 1024 * 1024
        store.purge(Selection(until_micros=5))
        store.put([letter(kept, text="x" * 50_000)], 101)


def test_failing_again_for_ever_stays_within_the_budget(data_dir: Path) -> None:
    with opened(data_dir, budget_bytes=1024 * 1024) as store:
        for at in range(60):
            store.put([letter(n, text=f"{at:04d}" * 10_000) for n in range(10)], at)
            assert store.used_bytes() <= 1024 * 1024
        assert held(store) == dict.fromkeys(range(10), b"0059" * 10_000)


def test_replayed_letters_give_way_before_a_put_is_refused(data_dir: Path) -> None:
    with opened(data_dir, budget_bytes=1024 * 1024) as store:
        for first in range(0, 20_000, 500):
            store.put([letter(first + n) for n in range(500)], first)
            queue(store)
            store.settle(LANE, first + 500, first)
        assert store.counters().replayed == 20_000


def test_a_letter_expires_after_its_newest_failure(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2), letter(3)], 0)
        store.put([letter(1)], DAY_MICROS)
        queue(store, Selection(ids=(3,)))
    with opened(data_dir, retention_seconds=86_400.0, at_micros=DAY_MICROS) as store:
        assert store.count() == 3, "a day is over only after it"
    with opened(data_dir, retention_seconds=86_400.0, at_micros=DAY_MICROS + 1) as store:
        assert [stored.id for stored in store.select()] == [1, 3], "a queued one is wanted"
        assert store.counters().expired == 1


def test_a_long_run_expires_letters_as_it_puts(data_dir: Path) -> None:
    with opened(data_dir, retention_seconds=1.0) as store:
        for at in range(250):
            store.put([letter(at)], at * 1_000_000)
        assert store.count() < 110


def test_a_purge_gives_the_space_back(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(n, text="x" * 1000, code="A" if n % 3 else "B") for n in range(3000)], 1)
        assert store.purge(Selection(code="A")) == 2000
        assert {stored.letter.key.offset for stored in store.select()} == set(range(0, 3000, 3))
        assert sum(path.stat().st_size for path in segments(data_dir)) < 1_100_000
        assert store.purge(EVERYTHING) == 1000
        assert segments(data_dir) == []
        assert store.used_bytes() < 100_000
    assert (data_dir / "dead-letters" / "index.db").stat().st_size < 100_000


def test_segments_roll_at_their_size(data_dir: Path) -> None:
    with opened(data_dir, budget_bytes=16 * 65_536) as store:
        store.put([letter(n, text="x" * 30_000) for n in range(10)], 1)
        assert len(segments(data_dir)) == 4
        assert set(held(store)) == set(range(10))


def test_the_next_process_goes_on_in_the_same_segment(data_dir: Path) -> None:
    for n in range(5):
        with opened(data_dir) as store:
            store.put([letter(n)], n)
    assert len(segments(data_dir)) == 1
    with opened(data_dir) as store:
        assert set(held(store)) == set(range(5))


def test_a_store_may_be_used_from_changing_threads(data_dir: Path) -> None:
    with opened(data_dir) as store:
        for n in range(3):
            thread = threading.Thread(target=store.put, args=([letter(n)], n))
            thread.start()
            thread.join()
        assert store.count() == 3


def test_readers_see_whole_letters_while_a_writer_moves_them(data_dir: Path) -> None:
    """Letters are rewritten and compacted all the time; a reader meets every payload, and never a damaged one."""
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with DeadLetterReader(data_dir) as reader:
                found = list(reader.select())
                problems.extend(stored.damage for stored in found if stored.damage is not None)
                problems.extend(stored.id for stored in found if stored.letter.raw[:4] != b"text")

    with opened(data_dir, budget_bytes=1024 * 1024) as store:
        store.put([letter(n, text="text") for n in range(20)], 0)
        thread = threading.Thread(target=read)
        thread.start()
        for at in range(150):
            store.put([letter((at + n) % 20, text="text" * 2000) for n in range(3)], at)
        done.set()
        thread.join()
    assert problems == []


def given_up(store: DeadLetterStore, *letters: int, copied_to: int = 0) -> int:
    return store.give_up(PIPELINE, [Claim(each, LANE.sink) for each in letters], copied_to=copied_to)


def test_a_letter_that_is_dropped_once_it_was_copied_gets_its_id_again(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10), letter(20), letter(30)], 1)
        assert given_up(store, 1, 2, 3, copied_to=2) == 3
        assert store.count() == 0
        store.put([letter(40), letter(30)], 2)
        assert [(each.id, each.letter.key.offset) for each in store.select(EVERYTHING)] == [(4, 40), (5, 30)]
        store.put([letter(20)], 3)
        store.put([letter(20)], 4)
        assert [each.letter.key.offset for each in store.newer_than(PIPELINE, 2, 10)] == [40, 30]
        assert store.get(2).letter.key.offset == 20
        assert given_up(store, 2) == 1, "its copies are gone, so it comes as a new one"
        store.put([letter(20), letter(10)], 5)
        assert all(each.id > 3 for each in store.select(EVERYTHING))


def test_letters_of_a_store_that_was_lost_get_ids_above_those_that_were_copied(data_dir: Path) -> None:
    with opened(data_dir) as store:
        assert given_up(store, copied_to=70) == 0
        store.put([letter(10)], 1)
        assert given_up(store, copied_to=3) == 0
        store.put([letter(20)], 2)
        assert [each.id for each in store.newer_than(PIPELINE, 70, 10)] == [71, 72]


def for_(*sinks: str) -> frozenset[str]:
    return frozenset(sinks)


def test_a_letter_is_for_the_sinks_it_came_with_until_another_failure_adds_some(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10, sinks=for_("b")), letter(20, sinks=for_("b"))], 1)
        store.put([letter(10, sinks=for_("a"))], 2)
        assert store.get(1).letter.sinks == {"a", "b"}
        lane = LANE._replace(sink="b")
        assert queue(store, lane=lane, above=40) == 2
        assert store.settle(lane, 42, 3) == [1, 2]
        assert (store.get(1).claims, store.get(1).state, store.get(2).state) == ({"a": None}, "dead", "replayed")
        store.put([letter(10, sinks=for_("d")), letter(20, sinks=for_("b"))], 4)
        assert (store.get(1).letter.sinks, store.get(2).letter.sinks) == ({"a", "d"}, {"b"})


def test_another_row_for_other_sinks_does_not_take_a_letters_place(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10, row=b"first", sinks=for_("a", "c"))], 1)
        store.put([letter(10, row=b"second", sinks=for_("b", "c"))], 2)
        found = {stored.letter.row: stored.letter.sinks for stored in store.select(EVERYTHING)}
        assert found == {b"first": {"a"}, b"second": {"b", "c"}}


def test_a_letter_on_its_way_keeps_its_number_when_it_makes_way(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10, sinks=for_("a"))], 1)
        queue(store, lane=LANE._replace(sink="a"))
        store.put([letter(10, sinks=for_("b"))], 2)
        assert [stored.claims for stored in store.select()] == [{"a": 1, "b": None}], "the same row"
        store.put([letter(10, raw=b"another", sinks=for_("b"))], 2)
        assert [stored.claims for stored in store.select()] == [{"a": 1}, {"b": None}]


def copied(store: DeadLetterStore, at: int) -> tuple[int, list[bytes | None]]:
    """What somebody copies who has the letters up to `at`, and up to where he has them then."""
    found = store.newer_than(PIPELINE, at, 100)
    return max([at, *(stored.id for stored in found)]), [stored.letter.row for stored in found]


def test_a_row_that_made_way_and_is_read_again_is_not_copied_again(data_dir: Path) -> None:
    """Under its own key there is another row by then, which other sinks lack, or was."""
    with opened(data_dir) as store:

        def read_again(letter_id: int, sink: str) -> None:
            store.give_up(PIPELINE, [Claim(letter_id, sink)], copied_to=at)

        store.put([letter(10, row=b"first", sinks=for_("a", "b"))], 1)
        at, rows = copied(store, 0)
        assert rows == [b"first"]
        read_again(1, "a")
        store.put([letter(10, row=b"second", sinks=for_("a"))], 2)
        at, rows = copied(store, at)
        assert rows == [b"second"]
        read_again(1, "b")
        store.put([letter(10, row=b"first", sinks=for_("b"))], 3)
        assert [(stored.id, stored.letter.row, stored.letter.sinks) for stored in store.select()] == [
            (1, b"first", {"b"}),
            (2, b"second", {"a"}),
        ]
        read_again(1, "b")
        read_again(2, "a")
        store.put([letter(10, row=b"first", sinks=for_("a"))], 4)
        store.put([letter(10, row=b"third", sinks=for_("b"))], 5)
        at, rows = copied(store, at)
        assert rows == [b"third"], "it is neither of those that were copied"
        store.put([letter(10, row=b"second", sinks=for_("c"))], 6)
        assert copied(store, at)[1] == []
        assert {stored.letter.row: stored.letter.sinks for stored in store.select()} == {
            b"first": {"a"},
            b"second": {"c"},
            b"third": {"b"},
        }
        assert {stored.letter.key.part for stored in store.select()} == {0}


def test_a_row_that_made_way_twice_is_still_there(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10, row=b"first", sinks=for_("a", "b", "c"))], 1)
        store.put([letter(10, row=b"second", sinks=for_("a"))], 2)
        (first, _) = store.select()
        store.put([replace(first.letter, row=b"a bit other", sinks=for_("b"))], 3)
        assert {stored.letter.row: stored.letter.sinks for stored in store.select()} == {
            b"first": {"c"},
            b"second": {"a"},
            b"a bit other": {"b"},
        }


def test_what_became_of_a_letter_is_found_also_once_it_made_way_for_another_row(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(n, sinks=for_("a", "b")) for n in range(4)], 1)
        for came_from in (2, 3, 4):
            part = came_from * PARTS_PER_LETTER + 1
            store.put([letter(came_from, stage="later", part=part, row=b"x", sinks=for_("a", "b"))], 2)
        store.put([letter(3, stage="later", part=3 * PARTS_PER_LETTER + 1, row=b"y", sinks=for_("b"))], 3)
        assert [stored.came_from for stored in store.select()] == [0, 0, 0, 0, 2, 3, 4, 3]
        assert store.successors("a", [2, 3]) == [(5, "a"), (6, "a")]
        assert store.successors("b", [3]) == [(8, "b")]
        assert store.successors("c", [3]) == []


def test_what_fails_again_with_the_same_content_needs_no_room(data_dir: Path) -> None:
    with opened(data_dir, budget_bytes=1024 * 1024) as store:
        kept = 0
        with pytest.raises(StorageFull):
            for kept in range(100):
                store.put([letter(kept, text="x" * 50_000)], kept)
        for at in range(200, 250):
            store.put([letter(n, text="x" * 50_000, message=f"again at {at}") for n in range(kept)], at)
        assert {stored.letter.attempts for stored in store.select()} == {51}
        with pytest.raises(StorageFull):
            store.put([letter(0, text="y" * 60_000)], 300)
        segments(data_dir)[0].write_bytes(b"damaged")
        store.purge(Selection(ids=(2, 3)))
        store.put([letter(0, text="x" * 50_000)], 400)
        assert store.get(1).damage is None, "what is damaged is written anew"


def test_an_edit_of_what_a_letter_on_its_way_became_is_refused(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1, sinks=for_("a"))], 1)
        queue(store, lane=LANE._replace(sink="a"))
        store.put([letter(1, stage="later", part=PARTS_PER_LETTER, row=b"x", sinks=for_("b"))], 2)
        store.edit(store.last_id(PIPELINE), row=b"y")
        store.put([letter(1, stage="later", part=PARTS_PER_LETTER, row=b"y", sinks=for_("a"))], 2)
        with pytest.raises(Refused, match="what became of dead letter 1, .*; finish that with `conveyord dlq replay`"):
            store.edit(store.last_id(PIPELINE), row=b"z")
        store.withdraw([Claim(1, "a")])
        with pytest.raises(Refused, match="that one first, or delete it with `conveyord dlq purge --id 1`"):
            store.edit(store.last_id(PIPELINE), row=b"z")
        store.purge(Selection(ids=(1,)))
        store.edit(store.last_id(PIPELINE), row=b"z")


def test_letters_go_over_to_a_pipeline_under_another_name(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(1), letter(2)], 1)
        queue(store)
        given_up(store, 1, copied_to=1)
        store.put([letter(3, pipeline="default/new")], 1)
        taken = store.take_over(PIPELINE, "default/new")
        assert sorted(taken) == [1, 2]
        assert sorted(store.take_over("default/new", PIPELINE, only=taken)) == [1, 2], "and back"
        assert [stored.letter.key.pipeline for stored in store.select()] == [PIPELINE, "default/new"]
        assert store.purge(Selection(ids=(3,))) == 1
        assert sorted(store.take_over(PIPELINE, "default/new")) == [1, 2]
        assert [stored.letter.key.pipeline for stored in store.select()] == ["default/new"]
        lane = LANE._replace(pipeline="default/new")
        assert [number for number, _ in store.queued(lane, 0, 9)] == [2]
        store.put([letter(1, pipeline="default/new")], 2)
        assert [stored.id for stored in store.select()] == [1, 2], "the one that was copied has its id"
        queue(store, lane=lane)
        assert [number for number, _ in store.queued(lane, 0, 9)] == [2, 3]
        assert store.take_over(PIPELINE, "default/new") == []


def test_letters_whose_records_are_read_again_are_not_counted_as_purged(data_dir: Path) -> None:
    with opened(data_dir) as store:
        store.put([letter(10), letter(20)], 1)
        given_up(store, 1)
        store.purge(EVERYTHING)
        assert (store.counters().read_again, store.counters().purged) == (1, 1)
