"""Source `file_parquet`: rows by number, files that differ, damage accounted for, nothing but sentences raised."""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, ConveyordError, RecordError, Refused
from conveyord.core.flow.positions import Positions
from conveyord.engine.contracts import OperatorContext
from conveyord.operators.source_file_parquet import FileParquetConfig, FileParquetSource
from conveyord.storage.parquet_files import SWOLLEN_BYTES, ParquetReader
from tests.engine.source_rig import Collector, Letters

SKIP = {"skip_bad": True}


def source(path: Path, *, context: dict[str, Any] | None = None, **options: Any) -> FileParquetSource:
    surroundings = OperatorContext(
        pipeline="default/p", stage="in", data_dir=path.parent, threads=trio.CapacityLimiter(2), **(context or {})
    )
    return FileParquetSource(FileParquetConfig(path=str(path), **options), surroundings)


async def read(
    path: Path, fences: tuple[Positions, ...] = (Positions(),), out: Collector | None = None, **options: Any
) -> Collector:
    out = out or Collector()
    await source(path, **options).run(out, fences=fences, drain=out.drain)
    return out


def numbered(first: int, end: int) -> pa.Table:
    return pa.table({"n": pa.array(range(first, end), pa.int64()), "s": [f"text {n}" for n in range(first, end)]})


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


# ------------------------------------------------------------------ rows and positions


@given(
    files=st.lists(st.integers(0, 50), min_size=1, max_size=3),
    group_rows=st.integers(1, 20),
    batch_rows=st.integers(1, 30),
    stops=st.lists(st.integers(1, 5), max_size=2),
)
def test_reading_goes_on_from_any_fences_in_whole_batches(
    tmp_path_factory: pytest.TempPathFactory, files: list[int], group_rows: int, batch_rows: int, stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("in")
    first = 0
    for index, rows in enumerate(files):
        write(folder / f"{index}.parquet", numbered(first, first + rows), row_group_size=group_rows)
        first += rows

    async def main() -> None:
        whole = await read(folder / "*", batch_rows=batch_rows)
        assert [row["n"] for row in whole.rows] == list(range(first))
        assert all(data.num_rows <= batch_rows for data, _, _ in whole.batches)
        some = [await read(folder / "*", out=Collector(drain_after=stop), batch_rows=7) for stop in stops]
        fences = (Positions(), *(one.positions for one in some))
        for held in (fences, fences[1:] or fences):
            rest = await read(folder / "*", held, batch_rows=batch_rows)
            for fence, before in zip(fences, [[], *(one.rows for one in some)], strict=True):
                if fence not in held:
                    continue
                lacking = [data for data, (span,), _ in rest.batches if not fence.covers(span)]
                after = [row["n"] for data in lacking for row in data.to_pylist()]
                assert [row["n"] for row in before] + after == list(range(first))

    trio.run(main)


async def test_a_finished_source_reads_nothing_again(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", numbered(0, 100))
    out = await read(tmp_path / "*")
    again = await read(tmp_path / "*", (out.positions,))
    assert again.batches == []
    assert again.expected_bytes == 0
    assert out.expected_bytes == (tmp_path / "a.parquet").stat().st_size


async def test_a_file_that_was_replaced_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", numbered(0, 100))
    out = await read(path)
    write(path, numbered(1, 101))
    with pytest.raises(Refused, match=r"a\.parquet: its footer is not the one that was read before \(position 100\)"):
        await read(path, (out.positions,))


async def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", numbered(0, 0))
    with pq.ParquetWriter(tmp_path / "b.parquet", numbered(0, 0).schema):
        pass  # no row group at all
    write(tmp_path / "c.parquet", numbered(0, 3))
    assert [row["n"] for row in (await read(tmp_path / "*")).rows] == [0, 1, 2]


async def test_provenance_and_places_name_the_row_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", numbered(0, 50), row_group_size=20)
    out = await read(path, batch_rows=7, context={"provenance": True, "dead_letters": Letters()})
    assert [(row["_partition"], row["_offset"]) for row in out.rows] == [(str(path), n) for n in range(50)]
    for (data, _, _), place_of in zip(out.batches, out.places, strict=True):
        assert place_of is not None
        assert [place_of(row).record.offset for row in range(data.num_rows)] == data["n"].to_pylist()


# ------------------------------------------------------------------ types and columns

AT = datetime(2024, 2, 29, 12, 30, 1, 250_000, tzinfo=UTC)
TYPES = pa.table(
    {
        "u8": pa.array([1, None, 255], pa.uint8()),
        "u64": pa.array([1, None, 2**63 - 1], pa.uint64()),
        "i16": pa.array([-5, None, 7], pa.int16()),
        "f16": pa.array(np.array([1, 0, 1.5], np.float16), mask=np.array([False, True, False])),
        "money": pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal128(12, 2)),
        "day": pa.array([date(2024, 2, 29), None, date(1969, 1, 1)]),
        "at_ns": pa.array([AT, None, AT], pa.timestamp("ns", "Europe/Berlin")),
        "at_ms": pa.array([AT.replace(tzinfo=None), None, None], pa.timestamp("ms")),
        "dict": pa.array(["a", None, "b"]).dictionary_encode(),
        "raw": pa.array([b"\xff", None, b""], pa.large_binary()),
        "list": pa.array([[1, None], None, []], pa.large_list(pa.int32())),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
        "struct": pa.array([{"a": {"b": ["x"]}}, None, {"a": None}]),
        "nothing": pa.nulls(3),
        "big": pa.array(["x" * 100, None, "ü"], pa.large_string()),
    }
)


async def test_every_type_becomes_one_that_a_table_has(tmp_path: Path) -> None:
    out = await read(write(tmp_path / "a.parquet", TYPES))
    (data, _, _) = out.batches[0]
    data.validate(full=True)
    expected = TYPES.drop_columns(["nothing"]).to_pylist()
    assert out.rows == expected
    kinds = {field.name: str(field.type) for field in data.schema}
    assert "nothing" not in kinds
    assert (kinds["u8"], kinds["u64"], kinds["at_ns"], kinds["at_ms"], kinds["dict"]) == (
        "int32",
        "int64",
        "timestamp[us, tz=UTC]",
        "timestamp[us]",
        "string",
    )


async def test_what_a_table_type_cannot_hold_goes_to_a_sibling(tmp_path: Path) -> None:
    table = pa.table({"u": pa.array([1, 2**64 - 1], pa.uint64()), "t": pa.array([1000, 1001], pa.timestamp("ns"))})
    rows = (await read(write(tmp_path / "a.parquet", table))).rows
    assert (rows[0]["u"], rows[1]["u"]) == (1, None)
    assert str(2**64 - 1) in rows[1].values()
    assert rows[0]["t"] == datetime(1970, 1, 1, 0, 0, 0, 1) and rows[1]["t"] is None
    assert "1970-01-01T00:00:00.000001001" in rows[1].values()


async def test_int96_times_keep_far_years(tmp_path: Path) -> None:
    times = [datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), AT.replace(tzinfo=None)]
    table = pa.table({"t": pa.array(times, pa.timestamp("us"))})
    path = write(tmp_path / "a.parquet", table, use_deprecated_int96_timestamps=True)
    assert [row["t"] for row in (await read(path)).rows] == times
    assert pq.read_schema(path).field("t").type == pa.timestamp("ns")  # which would wrap around


async def test_files_that_differ_become_one_widening_schema_wherever_a_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"id": pa.array([0, 1], pa.int32()), "x": pa.array([1, 2], pa.int64())}))
    write(tmp_path / "b.parquet", pa.table({"id": pa.array([2, 2**40], pa.int64()), "new": ["p", "q"]}))
    write(tmp_path / "c.parquet", pa.table({"id": pa.array([4], pa.int32()), "x": ["text"]}))
    write(tmp_path / "d.parquet", pa.table({"x": pa.array([2.0, 2.5]), "id": pa.array([5, 6], pa.uint8())}))
    whole = await read(tmp_path / "*")
    assert [{key: value for key, value in row.items() if value is not None} for row in whole.rows] == [
        {"id": 0, "x": 1},
        {"id": 1, "x": 2},
        {"id": 2, "new": "p"},
        {"id": 2**40, "new": "q"},
        {"id": 4, "x__string": "text"},
        {"id": 5, "x": 2},
        {"id": 6, "x__double": 2.5},
    ]
    for stop in range(1, len(whole.batches)):
        rest = await read(tmp_path / "*", (whole.positions_after(stop),))
        assert [data.schema for data, _, _ in rest.batches] == [data.schema for data, _, _ in whole.batches[stop:]]
        assert rest.rows == [row for data, _, _ in whole.batches[stop:] for row in data.to_pylist()]


async def test_only_the_columns_asked_for_are_read(tmp_path: Path) -> None:
    table = pa.table({"a": [1], "b": [2], "a.c": [3], "s": [{"x": 1, "y": 2}]})
    write(tmp_path / "1.parquet", table)
    write(tmp_path / "2.parquet", pa.table({"a": [4]}))
    out = await read(tmp_path / "*", columns=("s", "a"))
    assert out.rows == [{"a": 1, "s": {"x": 1, "y": 2}}, {"a": 4, "s": None}]


async def test_a_column_that_the_first_file_lacks_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "1.parquet", pa.table({"amount": [1], "b": [2]}))
    made = source(path, columns=("amuont",))
    with pytest.raises(
        ConfigError, match=r"stage 'in': columns names 'amuont', which .*1\.parquet lacks; did you mean"
    ):
        await made.check()


async def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(ConfigError, match=r"1\.parquet: two columns are named 'a'"):
        await read(write(tmp_path / "1.parquet", table))


# ------------------------------------------------------------------ damage


def damaged(path: Path, *, group: int, at: int = 40) -> Path:
    """Spoil a byte of the first column of a row group; checksums of pages show it."""
    chunk = pq.read_metadata(path).row_group(group).column(0)
    content = bytearray(path.read_bytes())
    content[(chunk.dictionary_page_offset or chunk.data_page_offset) + at] ^= 0xFF
    path.write_bytes(content)
    return path


def checked(path: Path, rows: int = 9000, group_rows: int = 3000) -> Path:
    options = {"data_page_size": 2048, "write_batch_size": 256, "compression": "none", "use_dictionary": False}
    return write(path, numbered(0, rows), row_group_size=group_rows, write_page_checksum=True, **options)


async def test_damage_stops_behind_the_rows_before_it(tmp_path: Path) -> None:
    path = damaged(checked(tmp_path / "a.parquet"), group=1, at=15_000)
    out = Collector()
    with pytest.raises(
        RecordError, match=r"a\.parquet: row group 1 cannot be read from row \d+ to its end at 6000 \("
    ) as told:
        await read(path, out=out, batch_rows=2000)
    assert told.value.code == "TRUNCATED_FILE"
    assert [row["n"] for row in out.rows] == list(range(len(out.rows)))
    assert 3000 <= len(out.rows) < 6000


async def test_damage_costs_the_rest_of_its_row_group_and_is_counted(tmp_path: Path) -> None:
    path = damaged(checked(tmp_path / "a.parquet"), group=1, at=15_000)
    whole = await read(path, batch_rows=2000, context=SKIP)
    found = [row["n"] for row in whole.rows]
    skipped = sum(tally.skipped for _, _, tally in whole.batches)
    assert skipped > 0
    assert found == [*range(6000 - skipped), *range(6000, 9000)]
    assert sum(tally.read for _, _, tally in whole.batches) == 9000
    # Bytes are damaged in the middle of the group, so a good part of it could be read; a run that goes on agrees.
    assert skipped < 3000
    for stop in range(1, len(whole.batches)):
        rest = await read(path, (whole.positions_after(stop),), batch_rows=2000, context=SKIP)
        assert rest.rows == [row for data, _, _ in whole.batches[stop:] for row in data.to_pylist()]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"n,s\n1,2\n" * 9, b"PAR1" + b"x" * 99 + b"\x10\0\0\0PAR1"])
async def test_a_file_that_cannot_be_opened_is_one_bad_record_until_it_is_restored(
    tmp_path: Path, content: bytes
) -> None:
    write(tmp_path / "a.parquet", numbered(0, 3))
    (tmp_path / "b.parquet").write_bytes(content)
    write(tmp_path / "c.parquet", numbered(6, 9))
    with pytest.raises(RecordError, match=r"b\.parquet: its footer cannot be read \(.*\); restore the file"):
        await read(tmp_path / "*")
    out = await read(tmp_path / "*", context=SKIP)
    assert [row["n"] for row in out.rows] == [0, 1, 2, 6, 7, 8]
    assert sum(tally.skipped for _, _, tally in out.batches) == 1
    write(tmp_path / "b.parquet", numbered(3, 6))
    assert [row["n"] for row in (await read(tmp_path / "*", (out.positions,))).rows] == [3, 4, 5]


async def test_a_file_cut_after_its_start_was_read_keeps_its_position(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", numbered(0, 100), row_group_size=10)
    content = path.read_bytes()
    some = await read(path, out=Collector(drain_after=2), batch_rows=10)
    path.write_bytes(content[:-30])
    passed = await read(path, (some.positions,), context=SKIP)
    assert Positions(some.positions).advanced(s for _, spans, _ in passed.batches for s in spans) == some.positions
    path.write_bytes(content)
    rest = await read(path, (some.positions,))
    assert [row["n"] for row in some.rows + rest.rows] == list(range(100))


def with_invalid_text(path: Path, rows: int, bad: set[int]) -> Path:
    texts = pa.array([b"\xff\xfe" if n in bad else b"fine" for n in range(rows)], pa.binary())
    text = pa.StringArray.from_buffers(rows, texts.buffers()[1], texts.buffers()[2])
    return write(path, pa.table({"n": range(rows), "s": text}))


async def test_text_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    bad = {3, 4, 60, 99}
    path = with_invalid_text(tmp_path / "a.parquet", 100, bad)
    letters, out = Letters(), Collector()
    with pytest.raises(RecordError, match=r"a\.parquet \(row 3\): .*UTF8"):
        await read(path, out=out)
    assert [row["n"] for row in out.rows] == [0, 1, 2]
    assert [position.offset for position in out.positions.values()] == [3]
    for context in ({"dead_letters": letters}, SKIP):
        out = await read(path, context={**context, "provenance": True}, batch_rows=30)
        assert [row["n"] for row in out.rows] == [row["_offset"] for row in out.rows]
        assert [row["n"] for row in out.rows] == [n for n in range(100) if n not in bad]
        assert sum(tally.dead + tally.skipped for _, _, tally in out.batches) == 4
    assert [one.place.record.offset for one in letters.rejected] == sorted(bad)
    assert {one.error.code for one in letters.rejected} == {"INVALID_UTF8"}


def encrypted(path: Path, *, plaintext_footer: bool) -> None:
    pe = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(pe.KmsClient):
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return bytes.fromhex(wrapped_key.decode())

    factory = pe.CryptoFactory(lambda config: Kms())
    config = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["n"]}, plaintext_footer=plaintext_footer)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, numbered(0, 9).schema, encryption_properties=properties) as writer:
        writer.write_table(numbered(0, 9))


@pytest.mark.parametrize("plaintext_footer", [False, True])
async def test_encrypted_files_are_refused(tmp_path: Path, plaintext_footer: bool) -> None:
    encrypted(tmp_path / "a.parquet", plaintext_footer=plaintext_footer)
    with pytest.raises(ConfigError, match=r"a\.parquet: is encrypted, which this source does not read; decrypt it"):
        await read(tmp_path / "*", context=SKIP)


async def test_columns_that_nest_too_deep_are_refused(tmp_path: Path) -> None:
    kind: pa.DataType = pa.int64()
    for _ in range(101):
        kind = pa.struct([pa.field("a", kind)])
    write(tmp_path / "a.parquet", pa.table({"a": pa.nulls(1, kind)}))
    with pytest.raises(RecordError, match="its columns nest deeper than 100 levels") as told:
        await read(tmp_path / "*")
    assert told.value.code == "TOO_DEEP"


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_files_raise_nothing_but_sentences_and_every_row_is_accounted_for(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    table = pa.table({"x": [{"a": [n, None], "b": f"v{n % 7}"} for n in range(300)]})
    options = {"compression": rng.choice(["none", "snappy", "zstd", "gzip"]), "row_group_size": 100}
    path = write(tmp_path / "a.parquet", table, write_page_checksum=rng.random() < 0.5, **options)
    good = path.read_bytes()
    for _ in range(60):
        content = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            where = rng.randrange(len(content)) if rng.random() < 0.5 else len(content) - 1 - rng.randrange(900)
            content[where] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        out = Collector()
        with suppress(ConveyordError):
            await read(path, out=out, context=SKIP, batch_rows=64)
        for data, (span,), tally in out.batches:
            data.validate(full=True)
            assert tally.rows == data.num_rows
            assert tally.read == span.end - span.first or (span.end == span.first and tally.read == 1)


@pytest.mark.parametrize("shape", ["plain", "struct", "list", "map"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
async def test_a_value_that_a_dictionary_holds_once_swells_no_batch(tmp_path: Path, shape: str, version: str) -> None:
    """Some hundred bytes of a file would be two gigabytes of text at once."""
    text, rows = "x" * (256 * 1024), 8_000
    words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    columns = {
        "plain": words,
        "struct": pa.StructArray.from_arrays([words], names=["t"]),
        "list": pa.ListArray.from_arrays(pa.array(range(0, rows + 1, 2), pa.int32()), words),
        "map": pa.MapArray.from_arrays(pa.array(range(rows + 1), pa.int32()), pa.array(["k"] * rows), words),
    }
    options = {"compression": "zstd", "data_page_version": version, "store_schema": False}
    path = write(tmp_path / "a.parquet", pa.table({"a": columns[shape]}), **options)
    assert path.stat().st_size < 10_000
    reader = ParquetReader(path, batch_rows=65_536)
    sizes, seen = [], 0
    for piece in reader.pieces():
        assert piece.data is not None, piece.damage
        sizes.append(piece.data.nbytes)
        seen += piece.data.num_rows
        if len(sizes) == 3:
            break
    reader.close()
    assert max(sizes) <= 2 * SWOLLEN_BYTES
    assert seen >= 3 * SWOLLEN_BYTES // (len(text) * 4)
