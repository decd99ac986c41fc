"""Rows of the records of a job: each good value has its row, with the number and the offset of its record."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.positions import Partition
from conveyord.core.flow.record_log import Records, TopicPartition, total_bytes
from conveyord.engine.kafka.hopper import Job
from conveyord.engine.kafka.rows import Column, RowOptions, Rows, rows_of, with_source
from conveyord.engine.payloads.json import JsonPayloads
from conveyord.engine.payloads.raw import RawPayloads

PLACE = TopicPartition("t", 7)
PARTITION = Partition("in", "t[7]")
ALL: tuple[Column, ...] = ("key", "headers", "timestamp", "topic", "partition", "offset")
LIMIT = 40


@dataclass(frozen=True)
class One:
    """A record, and what is to become of it."""

    kind: str
    value: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    time_ms: int


def options(*columns: Column, keeps_tombstones: bool = False, keys_are_text: bool = True) -> RowOptions:
    return RowOptions(columns, keys_are_text, keeps_tombstones, LIMIT)


def job_of(records: Sequence[One], offsets: Sequence[int], *, pieces: int = 1) -> Job:
    """The records at `offsets`, in about so many pieces."""
    size = max(1, -(-len(records) // pieces))
    made = []
    for first in range(0, len(records), size):
        some, places = records[first : first + size], offsets[first : first + size]
        values = [one.value for one in some]
        made.append(
            Records(
                PLACE,
                places,
                values,
                places[-1] + 1,
                total_bytes(values),
                -1,
                [one.key for one in some],
                [one.headers for one in some],
                [one.time_ms for one in some],
            )
        )
    return Job(PLACE, 0, offsets[-1] + 1 if offsets else 1, tuple(made))


KINDS = {
    "good": st.integers(0, 99).map(lambda n: b'{"n": %d}' % n),
    "bad": st.sampled_from([b"{", b"\xff", b"", b"[1]"]),
    "large": st.just(b'{"n": 1, "x": "' + b"x" * LIMIT + b'"}'),
    "tombstone": st.none(),
}
RECORDS = st.sampled_from(list(KINDS)).flatmap(
    lambda kind: st.builds(
        One,
        st.just(kind),
        KINDS[kind],
        st.one_of(st.none(), st.binary(max_size=3)),
        st.lists(st.tuples(st.sampled_from(["a", "b"]), st.one_of(st.none(), st.binary(max_size=2))), max_size=2).map(
            tuple
        ),
        st.integers(-1, 2_000_000_000_000),
    )
)


@given(st.lists(RECORDS, max_size=12), st.data(), st.booleans())
def test_each_record_is_a_row_bad_or_left_out_with_what_stands_beside_it(
    records: list[One], data: st.DataObject, keeps: bool
) -> None:
    gaps = [data.draw(st.integers(0, 2)) for _ in records]
    offsets = [sum(gaps[: number + 1]) + number for number in range(len(records))]
    job = job_of(records, offsets, pieces=data.draw(st.integers(1, 4)))
    rows = rows_of(
        job, JsonPayloads(), pa.schema([("n", pa.int64())]), options(*ALL, keeps_tombstones=keeps, keys_are_text=False)
    )
    kept = [number for number, one in enumerate(records) if one.kind == "good" or (keeps and one.kind == "tombstone")]
    assert rows.numbers.tolist() == kept
    assert [one.number for one in rows.bad] == [
        number for number, one in enumerate(records) if one.kind in {"bad", "large"}
    ]
    assert {one.code for one in rows.bad if records[one.number].kind == "large"} <= {"RECORD_TOO_LARGE"}
    for row, number in zip(rows.data.to_pylist(), kept, strict=True):
        one = records[number]
        expected: dict[str, Any] = {
            "n": None if one.value is None else int(one.value[6:-1]),
            "kafka_key": one.key,
            "kafka_headers": list(one.headers),
            "kafka_timestamp": None
            if one.time_ms < 0
            else dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=one.time_ms),
            "kafka_topic": "t",
            "kafka_partition": 7,
            "kafka_offset": offsets[number],
        }
        assert row == expected
    place_of = rows.place_of(PARTITION)
    for row_number, number in enumerate(kept):
        record = place_of(row_number).record
        assert (record.offset, record.raw) == (offsets[number], records[number].value)
    assert list(rows.offsets) == offsets
    assert [rows.record(PARTITION, one.number).offset for one in rows.bad] == [offsets[one.number] for one in rows.bad]


def made(values: Sequence[bytes | None], **more: Any) -> Rows:
    records = [One("", value, b"k%d" % number, (), number) for number, value in enumerate(values)]
    given: dict[str, Any] = {"decoder": JsonPayloads(), "schema": None, "options": options(), **more}
    return rows_of(job_of(records, list(range(len(values)))), **given)


def test_a_field_that_has_the_name_of_a_column_goes_to_a_sibling() -> None:
    rows = made([b'{"kafka_key": 1}'], options=options("key"))
    assert rows.data.to_pylist() == [{"kafka_key__int64": 1, "kafka_key": "k0"}] or rows.data.column(
        "kafka_key"
    ).to_pylist() == ["k0"]
    assert sorted(map(str, rows.data.to_pylist()[0].values())) == ["1", "k0"]


def test_a_key_that_is_no_text_is_written_so_that_it_can_be_read() -> None:
    job = job_of([One("", b"{}", b"\xffk", (), 0), One("", b"{}", None, (), 0)], [0, 1])
    rows = rows_of(job, JsonPayloads(), None, options("key"))
    assert rows.data.column("kafka_key").to_pylist() == ["\\xffk", None]


def test_tombstones_alone_are_rows_of_nulls_or_no_rows() -> None:
    assert made([None, None]).data.num_rows == 0
    kept = made([None, None], options=options("offset", keeps_tombstones=True))
    assert kept.data.to_pylist() == [{"kafka_offset": 0}, {"kafka_offset": 1}]
    bare = made([None, None], options=options(keeps_tombstones=True))
    assert bare.data.num_rows == 2


def test_provenance_names_partition_and_offset_of_each_row() -> None:
    rows = made([b'{"n": 1}', b"{", None, b'{"n": 2}'])
    found = with_source(rows, PARTITION).to_pylist()
    assert [(row["_source"], row["_partition"], row["_offset"]) for row in found] == [
        ("in", "t[7]", 0),
        ("in", "t[7]", 3),
    ]


def test_other_formats_have_the_same_numbers() -> None:
    rows = made([b"a", None, b"\xff", b"b"], decoder=RawPayloads(is_text=True))
    assert rows.data.to_pylist() == [{"value": "a"}, {"value": "b"}]
    assert (rows.numbers.tolist(), [one.number for one in rows.bad]) == ([0, 3], [2])


def test_only_what_was_asked_for_is_fetched() -> None:
    assert options("topic", "offset").wants == frozenset()
    assert options(*ALL).wants == {"key", "headers", "timestamp"}
