"""The file sources: order, positions, resumption, bad records, and schemas that grow on the way."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio

from conveyord.core.errors import ConfigError, RecordError
from conveyord.core.flow.positions import Positions
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext, Source
from conveyord.engine.json import JsonLinesDecoder
from conveyord.operators.source_file_csv import FileCsvConfig, FileCsvSource
from conveyord.operators.source_file_jsonl import FileJsonlConfig, FileJsonlSource
from tests.engine.source_rig import Collector, Letters, records_of

SMALL_BLOCK = 64 * 1024


async def read(
    pattern: Path,
    *,
    fences: tuple[Positions, ...] = (Positions(),),
    out: Collector | None = None,
    batch_rows: int = 65_536,
    **context: Any,
) -> Collector:
    out = out or Collector()
    config = FileJsonlConfig(path=str(pattern), block_bytes=SMALL_BLOCK, batch_rows=batch_rows)
    surroundings = OperatorContext(
        pipeline="default/p", stage="source", data_dir=pattern.parent, threads=trio.CapacityLimiter(2), **context
    )
    await FileJsonlSource(config, surroundings).run(out, fences=fences, drain=out.drain)
    return out


def lines(first: int, end: int) -> bytes:
    return b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 50) for n in range(first, end))


async def test_rows_come_in_file_order_and_positions_tile(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10_000))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(10_000, 20_000)))
    out = await read(tmp_path / "*")
    assert [row["n"] for row in out.rows] == list(range(20_000))
    assert len(out.batches) > 10
    assert {position.offset for position in out.positions.values()} == {
        len(lines(0, 10_000)),
        len(lines(10_000, 20_000)),
    }


async def test_reading_goes_on_from_a_fence_without_loss_or_repetition(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10_000))
    (tmp_path / "b.jsonl").write_bytes(lines(10_000, 20_000))
    first = await read(tmp_path / "*", out=Collector(drain_after=4))
    second = await read(tmp_path / "*", fences=(first.positions,))
    assert 0 < len(first.rows) < 20_000
    assert [row["n"] for row in first.rows + second.rows] == list(range(20_000))


async def test_batches_are_cut_at_every_fence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 10_000))
    ahead = await read(tmp_path / "*", out=Collector(drain_after=3))
    behind = Positions().advanced(ahead.batches[0][1])
    out = await read(tmp_path / "*", fences=(ahead.positions, behind))
    (position,) = ahead.positions.values()
    ends = [spans[0].end for _, spans, _ in out.batches]
    assert position.offset in ends
    assert out.batches[0][1][0].first == behind[next(iter(behind))].offset


async def test_a_finished_source_reads_nothing_again(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 100))
    out = await read(tmp_path / "*")
    assert (await read(tmp_path / "*", fences=(out.positions,))).batches == []


@pytest.mark.parametrize("where", [0, 3, 4_000])
async def test_a_bad_record_stops_behind_the_rows_before_it_and_can_be_mended(tmp_path: Path, where: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(0, where) + b'{"n": broken}\n' + lines(where + 1, 10_000))
    out = Collector()
    with pytest.raises(RecordError, match=rf"a\.jsonl:{where + 1} \(byte {len(lines(0, where))}\)"):
        await read(path, out=out)
    assert [row["n"] for row in out.rows] == list(range(where))
    path.write_bytes(lines(0, 10_000))
    rest = await read(path, fences=(out.positions,))
    assert [row["n"] for row in out.rows + rest.rows] == list(range(10_000))


async def test_skipped_records_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(0, 2_000) + b"{broken\n" + lines(2_000, 4_000) + b"[1]\n")
    out = await read(path, skip_bad=True)
    assert [row["n"] for row in out.rows] == list(range(4_000))
    tally = sum((tally for _, _, tally in out.batches), Tally())
    assert tally == Tally(read=4_002, skipped=2)


async def test_a_record_beyond_the_limit_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(0, 10) + b'{"n":"' + b"x" * 20_000_000 + b'"}\n' + lines(10, 20))
    with pytest.raises(RecordError, match=r"longer than max_record_bytes \(16777216\)") as caught:
        await read(path)
    assert caught.value.code == "RECORD_TOO_LARGE"
    out = await read(path, skip_bad=True)
    assert [row["n"] for row in out.rows] == list(range(20))


async def test_a_truncated_gzip_stops_the_run_behind_its_whole_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(lines(0, 10_000))
    path.write_bytes(whole[: len(whole) // 2])
    out = Collector()
    with pytest.raises(RecordError, match="restore the file"):
        await read(path, out=out)
    path.write_bytes(whole)
    rest = await read(path, fences=(out.positions,))
    assert [row["n"] for row in out.rows + rest.rows] == list(range(10_000))


async def test_a_field_that_appears_late_is_a_column_from_there_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    filler = b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 1000) for n in range(20_000))  # beyond the sample
    late = b"".join(b'{"n":%d,"late":{"deep":%d}}\n' % (n, n) for n in range(20_000, 22_000))
    path.write_bytes(filler + late + lines(22_000, 22_100))
    out = await read(path)
    assert "late" not in out.batches[0][0].schema.names
    assert [row["late"]["deep"] for row in out.rows if row.get("late")] == list(range(20_000, 22_000))
    schemas = [data.schema for data, _, _ in out.batches]
    grown = next(i for i, schema in enumerate(schemas) if "late" in schema.names)
    assert all("late" in schema.names for schema in schemas[grown:])


async def test_types_do_not_depend_on_where_reading_starts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"n": n, "x": n if n > 2_000 else n + 0.5, "pad": "p" * 60} for n in range(4_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = await read(path, out=Collector(drain_after=2))
    second = await read(path, fences=(first.positions,))
    assert second.batches[0][0].schema == first.batches[0][0].schema
    assert second.batches[0][0].schema.field("x").type == pa.float64()


async def test_provenance_names_the_place_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = lines(0, 3_000) + b"bad\n\n" + lines(3_000, 6_000)
    path.write_bytes(content)
    out = await read(path, skip_bad=True, provenance=True)
    for row in out.rows:
        assert row["_source"] == "source" and row["_partition"] == str(path)
        assert content[row["_offset"] :].startswith(b'{"n":%d,' % row["n"])


async def test_batches_hold_at_most_batch_rows_and_each_can_be_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(0, 100) + b"bad\n" + lines(100, 5_000))
    out = await read(path, batch_rows=130, skip_bad=True)
    assert max(data.num_rows for data, _, _ in out.batches) <= 130
    assert sum((tally for _, _, tally in out.batches), Tally()) == Tally(read=5_001, skipped=1)
    seen = 0
    for index in (0, 1, 7, 20):
        before = Positions().advanced(span for _, spans, _ in out.batches[: index + 1] for span in spans)
        seen = sum(data.num_rows for data, _, _ in out.batches[: index + 1])
        rest = await read(path, fences=(before,), skip_bad=True)
        assert [row["n"] for row in rest.rows] == list(range(seen, 5_000))


async def test_a_declared_csv_column_that_no_header_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,a\n")
    config = FileCsvConfig(path=str(tmp_path / "a.csv"), types={"nam": "string"})
    context = OperatorContext("default/p", "source", tmp_path, trio.CapacityLimiter(2))
    out = Collector()
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        await FileCsvSource(config, context).run(out, fences=(Positions(),), drain=out.drain)


async def test_csv_files_with_other_headers_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,name\n1,a\n")
    (tmp_path / "b.csv").write_text("name,id,more\nb,2,x\n")
    context = OperatorContext("default/p", "source", tmp_path, trio.CapacityLimiter(2))
    out = Collector()
    config = FileCsvConfig(path=str(tmp_path / "*.csv"))
    await FileCsvSource(config, context).run(out, fences=(Positions(),), drain=out.drain)
    assert out.rows == [{"id": 1, "name": "a", "more": None}, {"id": 2, "name": "b", "more": "x"}]


def values(out: Collector) -> list[dict[str, Any]]:
    """Rows without their nulls: a column that a batch does not know yet is a null of that row."""
    return [{name: value for name, value in row.items() if value is not None} for row in out.rows]


async def test_late_columns_are_typed_alike_wherever_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    filler = b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 1000) for n in range(17_000))  # beyond the sample
    late = [
        {"n": n, "c": f"s{n}" if n < 18_000 else n, "v": n if n > 19_000 else n / 3, "pad": "p" * 90}
        for n in range(17_000, 21_000)
    ]
    path.write_bytes(filler + "".join(json.dumps(row) + "\n" for row in late).encode())
    whole = await read(path)
    expected = values(whole)
    assert expected[17_000]["c"] == "s17000"
    assert expected[18_000]["c"] == "18000"
    done, compared = 0, 0
    for index, (data, _, _) in enumerate(whole.batches, 1):
        done += data.num_rows
        if 17_000 < done < 21_000:
            rest = await read(path, fences=(whole.positions_after(index),))
            assert values(rest) == expected[done:]
            compared += 1
    assert compared >= 3


async def test_other_options_infer_anew(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    context = OperatorContext("default/p", "source", tmp_path, trio.CapacityLimiter(2))
    first, second = Collector(), Collector()
    config = FileCsvConfig(path=str(tmp_path / "*.csv"))
    await FileCsvSource(config, context).run(first, fences=(Positions(),), drain=first.drain)
    (tmp_path / "b.csv").write_text("id\n2\n")
    config = FileCsvConfig(path=str(tmp_path / "*.csv"), types={"id": "string"})
    await FileCsvSource(config, context).run(second, fences=(first.positions,), drain=second.drain)
    assert (first.rows, second.rows) == ([{"id": 1}], [{"id": "2"}])


async def test_a_damaged_file_that_is_passed_over_is_counted_and_read_on_once_restored(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(lines(0, 10_000))
    path.write_bytes(whole[: len(whole) // 2])
    out = await read(path, skip_bad=True)
    assert sum((tally for _, _, tally in out.batches), Tally()) == Tally(read=len(out.rows) + 1, skipped=1)
    path.write_bytes(whole)
    rest = await read(path, fences=(out.positions,))
    assert [row["n"] for row in out.rows + rest.rows] == list(range(10_000))


async def test_an_oversize_quoted_record_stops_even_when_bad_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,a\n2,"' + "9,inside\n" * 150_000 + '"\n3,c\n')
    context = OperatorContext("default/p", "source", tmp_path, trio.CapacityLimiter(2), skip_bad=True)
    out = Collector()
    with pytest.raises(RecordError, match=r"a\.csv:3 .*longer than max_record_bytes"):
        config = FileCsvConfig(path=str(path), block_bytes="256KiB", max_record_bytes="1MiB")
        await FileCsvSource(config, context).run(out, fences=(Positions(),), drain=out.drain)
    assert out.rows == [{"id": 1, "text": "a"}]


async def test_what_there_is_to_read_is_told_where_it_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(0, 5_000))
    first = await read(tmp_path / "*", out=Collector(drain_after=1))
    rest = await read(tmp_path / "*", fences=(first.positions,))
    assert first.expected_bytes == len(lines(0, 5_000))
    (position,) = first.positions.values()
    assert rest.expected_bytes == len(lines(0, 5_000)) - position.offset


# ---------------------------------------------------------------------------- where rows came from


@pytest.mark.parametrize("batch_rows", [7, 65_536])
@pytest.mark.parametrize("suffix", ["", ".gz"])
async def test_each_row_of_json_lines_knows_its_line(tmp_path: Path, batch_rows: int, suffix: str) -> None:
    some = [b'{"n":%d,"s":"%s"}' % (n, b"x" * (n % 90)) for n in range(300)]
    written = [b"not JSON" if n % 17 == 3 else b"  " if n % 23 == 5 else line for n, line in enumerate(some)]
    content = b"\n".join(written)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    letters = Letters()
    out = await read(tmp_path / "a*", batch_rows=batch_rows, dead_letters=letters)
    offsets = [sum(len(line) + 1 for line in written[:n]) for n in range(300)]
    # Blank lines behind a record come with it.
    assert [(at, (raw or b"").rstrip()) for at, raw in records_of(out)] == [
        (at, line) for at, line in zip(offsets, written, strict=True) if line.strip() and line != b"not JSON"
    ]
    assert [(each.place.record.offset, each.place.record.raw) for each in letters.rejected] == [
        (at, line) for at, line in zip(offsets, written, strict=True) if line == b"not JSON"
    ]


async def test_each_row_of_csv_knows_its_record_and_can_be_read_from_it_alone(tmp_path: Path) -> None:
    header = b"n,s,t\r\n"
    records = [b'%d,"one\r\ntwo ""%d""",x\r\n' % (n, n) if n % 3 else b"%d,plain,y\r\n" % n for n in range(60)]
    records[7] = b"1,2,3,4,5\r\n"
    (tmp_path / "a.csv").write_bytes(header + b"".join(records))
    letters, out = Letters(), Collector()
    context = OperatorContext("default/p", "source", tmp_path, trio.CapacityLimiter(1), dead_letters=letters)
    config = FileCsvConfig(path=str(tmp_path / "a.csv"), batch_rows=9)
    made: Source = FileCsvSource(config, context)
    await made.run(out, fences=(Positions(),), drain=out.drain)
    offsets = [len(header) + sum(map(len, records[:n])) for n in range(60)]
    found = records_of(out)
    assert [at for at, _ in found] == [at for n, at in enumerate(offsets) if n != 7]
    assert [each.place.record.offset for each in letters.rejected] == [offsets[7]]
    for (_, raw), row in zip(found, out.rows, strict=True):
        assert raw is not None
        state = out.states[-1].get("source")
        assert made.decode(raw, state).to_pylist() == [row]


class CountingDecoder(JsonLinesDecoder):
    """Counts how often it is asked where records start."""

    def __init__(self) -> None:
        self.asked = 0

    def starts(self, block: bytes) -> pa.Int64Array:
        self.asked += 1
        return super().starts(block)


async def test_the_starts_of_a_block_are_found_once_however_many_of_its_rows_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else 3,250 dead letters of a block of 65,000 rows take a minute."""
    decoder = CountingDecoder()
    monkeypatch.setattr(FileJsonlSource, "decoder", lambda _: decoder)
    content = b"".join(b"no JSON\n" if n % 9 == 4 else b'{"n":%d}\n' % n for n in range(500))
    (tmp_path / "a.jsonl").write_bytes(content)
    out = await read(tmp_path / "a.jsonl", dead_letters=Letters())
    assert decoder.asked == 0
    assert [raw for _, raw in records_of(out)] == [line for line in content.splitlines() if line != b"no JSON"]
    assert decoder.asked == len(out.batches) == 1

    out = await read(tmp_path / "a.jsonl", dead_letters=Letters(), batch_rows=7)
    assert len(out.batches) > 60
    assert {content[offset:].split(b"\n", 1)[0] == raw for offset, raw in records_of(out)} == {True}
    assert decoder.asked == 2
