"""`dlq`: what is listed, shown, mended, exported and purged, by the real command line on a real directory."""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conveyord.cli.dlq_records import check_record
from conveyord.core.errors import ConfigError
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER
from conveyord.core.flow.positions import Partition
from conveyord.storage.dead_letters.letters import Selection, StoredLetter
from conveyord.storage.locks import owned
from tests.storage.dead_letters_rig import letter, opened, segments

GROUP_KEYS = {"pipeline", "stage", "code", "message", "newest", "count", "first", "last"}
ROW = pa.record_batch(
    {
        "id": pa.array([7], pa.int64()),
        "at": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "UTC")),
        "tags": pa.array([["a", "b"]]),
        "amount": pa.array(["12.50"]).cast(pa.decimal128(10, 2)),
    }
)
ROW_OBJECT = {"id": 7, "at": "2023-11-14T22:13:20.123456789Z", "tags": ["a", "b"], "amount": "12.50"}


def stream(batch: pa.RecordBatch) -> bytes:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)
    return out.getvalue().to_pybytes()


def now() -> int:
    return time.time_ns() // 1000


@pytest.fixture
def letters(data_dir: Path) -> Path:
    """1: a record as text; 2: a binary one; 3: a row that failed in a later stage; 4: of another pipeline."""
    with opened(data_dir) as store:
        store.put([letter(10, text='{"id": 1, "x": }')], now() - 7_200_000_000)
        store.put([letter(20, raw=b"\xff\xfe\x00bin", code="INVALID_UTF8")], now())
        store.put([letter(30, stage="clean", code="BATCH_FAILED", text='{"id": 7}', row=stream(ROW), part=2)], now())
        store.put([letter(40, pipeline="team/other", message="esc \x1b[2J here")], now())
    return data_dir


def test_a_list_is_by_cause(call: Any, letters: Path) -> None:
    listed = call("dlq", "list", "--data-dir", letters, "-o", "json").json
    assert listed["total"] == 4
    assert all(set(group) == GROUP_KEYS for group in listed["groups"])
    causes = {(g["pipeline"], g["stage"], g["code"]): (g["count"], g["newest"]) for g in listed["groups"]}
    assert causes == {
        ("default/job", "source", "BAD"): (1, 1),
        ("default/job", "source", "INVALID_UTF8"): (1, 2),
        ("default/job", "clean", "BATCH_FAILED"): (1, 3),
        ("team/other", "source", "BAD"): (1, 4),
    }
    text = call("dlq", "list", "--data-dir", letters)
    head, *lines = text.out.splitlines()
    assert head.split() == ["count", "pipeline", "stage", "code", "first", "last", "newest", "message"]
    assert len(lines) == 4
    assert "4 dead letters in" in text.err
    assert "\x1b" not in text.out


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ([], [1, 2, 3, 4]),
        (["--pipeline", "job"], [1, 2, 3]),
        (["--pipeline", "team/other"], [4]),
        (["--stage", "clean"], [3]),
        (["--code", "BAD", "--since", "1h"], [4]),
        (["--since", "2020-01-01"], [1, 2, 3, 4]),
        (["--since", "2200-01-01T00:00:00+02:00"], []),
        (["--id", "1", "--id", "3", "--id", "77"], [1, 3]),
        (["--limit", "2"], [1, 2]),
    ],
)
def test_a_selection_chooses_letters(call: Any, letters: Path, options: list[str], ids: list[int]) -> None:
    listed = call("dlq", "list", "--each", *options, "--data-dir", letters, "-o", "json").json
    assert [each["id"] for each in listed["letters"]] == ids
    lines = call("dlq", "list", "--each", *options, "--data-dir", letters).out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", *map(str, ids)]


def test_where_nothing_failed_the_list_is_empty_and_nothing_is_made(call: Any, tmp_path: Path) -> None:
    place = tmp_path / "none"
    assert call("dlq", "list", "--data-dir", place, "-o", "json").json == {"total": 0, "groups": []}
    assert "0 dead letters" in call("dlq", "list", "--data-dir", place).err
    assert call("dlq", "purge", "--all", "--data-dir", place, "-o", "json").json == {"purged": 0}
    assert not place.exists()


def test_show_gives_everything_a_letter_holds(call: Any, letters: Path) -> None:
    shown = call("dlq", "show", 3, "--data-dir", letters, "-o", "json").json
    assert shown.pop("first") == shown.pop("last")
    assert shown == {
        "id": 3,
        "pipeline": "default/job",
        "source": "source",
        "partition": "/in/a.jsonl",
        "offset": 30,
        "stage": "clean",
        "part": 2,
        "code": "BATCH_FAILED",
        "message": "record 30 is bad",
        "attempts": 1,
        "state": "dead",
        "came_from": None,
        "lacked_by": ["sinks that keep no positions"],
        "edited": False,
        "damage": None,
        "raw": '{"id": 7}',
        "raw_base64": None,
        "row": ROW_OBJECT,
    }
    text = call("dlq", "show", 3, "--data-dir", letters).out
    assert "record       source: /in/a.jsonl, offset 30, row 2" in text
    assert '  "amount": "12.50"' in text
    assert '{"id": 1, "x": }' in call("dlq", "show", 1, "--data-dir", letters).out


def test_show_names_the_letter_that_failed_further_on(call: Any, letters: Path) -> None:
    with opened(letters) as store:
        store.put([letter(30, stage="later", part=3 * PARTS_PER_LETTER, row=stream(ROW))], now())
    assert "came from    dead letter 3, when that was replayed" in call("dlq", "show", 5, "--data-dir", letters).out
    assert call("dlq", "show", 5, "--data-dir", letters, "-o", "json").json["came_from"] == 3
    assert "came from" not in call("dlq", "show", 3, "--data-dir", letters).out


def test_binary_records_and_control_characters_do_not_reach_a_terminal(call: Any, letters: Path) -> None:
    assert "00000000  ff fe 00 62 69 6e" in call("dlq", "show", 2, "--data-dir", letters).out
    binary = call("dlq", "show", 2, "--data-dir", letters, "-o", "json").json
    assert (binary["raw"], base64.b64decode(binary["raw_base64"])) == (None, b"\xff\xfe\x00bin")
    assert "\x1b" not in call("dlq", "show", 4, "--data-dir", letters).out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "99"], "there is no dead letter 99 in"),
        (["edit", "99", "--set-raw", os.devnull], "there is no dead letter 99 in"),
        (["list", "--since", "yesterday"], "--since 'yesterday' is neither a duration such as 2h nor a time"),
        (["list", "--since", "-5m"], "--since '-5m' is neither"),
        (["purge"], "say which dead letters: give a selection such as --code or --id, or --all"),
        (["purge", "--all", "--code", "BAD"], "say which dead letters"),
        (["purge", "--code", "BAD"], "2 dead letters would be deleted and nobody can be asked; pass --yes"),
        (["export", "out.csv"], "out.csv: the name must end in .jsonl or .parquet"),
        (["export", "/nowhere/out.jsonl"], "/nowhere/out.jsonl: cannot be written: No such file or directory"),
        (["edit", "1", "--set-row", "{row}"], "dead letter 1 has no row, it failed as a record; give --set-raw"),
        (["edit", "3", "--set-row", "{row}", "--set-raw", "{row}"], "--set-raw and --set-row exclude each other"),
        (["edit", "1", "--set-raw", os.devnull], "--set-raw: /dev/null is blank; give all of it, or delete"),
        (
            ["edit", "1", "--set-raw", "{blank}"],
            "is blank; give all of it, or delete the letter with `conveyord dlq purge --id 1`",
        ),
        (["edit", "3", "--set-row", os.devnull], "--set-row: /dev/null is blank"),
    ],
)
def test_a_wrong_call_is_exit_code_2_with_a_sentence(
    call: Any, letters: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "row").write_text('{"id": 1}')
    (tmp_path / "blank").write_text(" \n")
    given = [
        argument.replace("{row}", f"{tmp_path}/row").replace("{blank}", f"{tmp_path}/blank") for argument in arguments
    ]
    ended = call("dlq", *given, "--data-dir", letters, "-o", "json")
    assert (ended.code, ended.json["error"]["code"]) == (2, "CONFIG"), ended.err
    assert sentence in ended.err


@pytest.mark.parametrize("letter_id", ["0", "-1", "x", str(2**63)])
def test_an_id_that_cannot_be_is_a_usage_error(call: Any, letters: Path, letter_id: str) -> None:
    assert call("dlq", "show", "--data-dir", letters, "--", letter_id).code == 2


# -------------------------------------------------------------------- edit


def test_a_record_is_taken_from_a_file_byte_by_byte(call: Any, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"\x00\xffnew\n")
    ended = call("dlq", "edit", 1, "--set-raw", tmp_path / "new", "--as-is", "--data-dir", letters, "-o", "json")
    assert ended.json == {"id": 1, "edited": True}
    with opened(letters) as store:
        assert (store.get(1).letter.raw, store.get(1).edited) == (b"\x00\xffnew\n", True)


def test_a_row_is_edited_by_the_types_it_had(call: Any, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "row").write_text(json.dumps({**ROW_OBJECT, "id": 8, "tags": None}))
    assert call("dlq", "edit", 3, "--set-row", tmp_path / "row", "--data-dir", letters).code == 0
    with opened(letters) as store:
        (batch,) = pa.ipc.open_stream(store.get(3).letter.row).read_all().to_batches()
    assert batch.schema == ROW.schema
    assert batch.column("id").to_pylist() == [8]
    assert batch.column("at").equals(ROW.column("at")), "nanoseconds are kept"
    assert batch.column("tags").to_pylist() == [None]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "the edited row must be a JSON object"),
        ("{", "the edited row is not JSON: Expecting property name"),
        (b"\xff", "the edited row is not UTF-8"),
        ('{"idd": 1}', "the edited row has a column 'idd' that the row had not; did you mean 'id'?"),
        ('{"id": "x"}', "column 'id' of the edited row: \"x\" is no int64"),
        ('{"id": 1.5}', "column 'id' of the edited row: 1.5 is no int64"),
        ('{"id": true}', "column 'id' of the edited row: true is no int64"),
        ('{"at": 5}', "column 'at' of the edited row: 5 is no timestamp[ns, tz=UTC]"),
        ('{"tags": "a"}', "column 'tags' of the edited row"),
        ('{"id": 1, "id": 2}', "the edited row has the key 'id' more than once in one object, with 1 and 2; keep one"),
        ('{"tags": {"a": 1, "a": 1}}', "the edited row has the key 'a' more than once"),
        ('{"id": 1, "tags": null}', "lacks 2 columns that it had: 'at', 'amount'; give null for no value"),
        ("{}", "lacks 4 columns that it had: 'id', 'at', 'tags', 'amount'"),
        ("[" * 100_000, "the edited row is not JSON"),
        ('{"amount": "1.234"}', "column 'amount' of the edited row: \"1.234\" is no decimal128(10, 2)"),
    ],
)
def test_an_edited_row_that_does_not_fit_is_refused(
    call: Any, letters: Path, tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    (tmp_path / "row").write_bytes(text if isinstance(text, bytes) else text.encode())
    ended = call("dlq", "edit", 3, "--set-row", tmp_path / "row", "--data-dir", letters)
    assert ended.code == 2
    assert sentence in ended.err
    with opened(letters) as store:
        assert not store.get(3).edited


def test_a_field_of_an_object_that_an_edited_row_leaves_out_is_named(call: Any, data_dir: Path, tmp_path: Path) -> None:
    nested = pa.record_batch({"o": [{"x": 1, "deep": {"y": 2, "z": 3}}]})
    with opened(data_dir) as store:
        store.put([letter(30, stage="clean", text="{}", row=stream(nested))], now())
    (tmp_path / "row").write_text('{"o": {"x": 1, "deep": {"y": 5}}}')
    ended = call("dlq", "edit", 1, "--set-row", tmp_path / "row", "--data-dir", data_dir)
    assert ended.code == 2
    assert "column 'o.deep' of the edited row lacks 1 field that it had: 'z'; give null for no value" in ended.err


@pytest.mark.parametrize(
    ("place", "former", "text", "problem"),
    [
        ("/in/a.jsonl", None, '{"a": 1}\n{"a": 2}\n', "it is 2 lines, and each is a record"),
        ("/in/a.jsonl", None, "[1]", "a record must be a JSON object"),
        ("/in/a.json.gz", None, '{"a": 1} {"a": 2}', "more than one JSON value on the line"),
        ("/in/a.ndjson.zst", None, '\ufeff{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("/in/a.jsonl", None, '{"a": 1}\n\n', None),
        ("/in/csv.json", "a,b\n1,2,3", "a,b\n1,2", None),
        ("https://example.org/events", None, "[1]", "a record must be a JSON object"),
        ("https://example.org/events", None, '{"a": 1}\n{"a": 2}', "more than one JSON value"),
        ("push-3f", None, '{"a":\n 1}', None),
        ("push-me[0]", None, "[1]", None),
        ("events[3]", None, "[1]", None),
        ("/in/a.csv", "a,b\n1,2,3\n", 'a,b\n1,"x\ny"\n', None),
        ("/in/a.csv", "a;b\n1;2;3\n", 'a;b\n1;"x\ny"\n', None),
        ("/in/a.csv", "a,b\n1,2,3\n", "a,b\n1,2\n3,4\n", "it is 3 lines, and a header and a record are two"),
        ("/in/a.csv", "a,b\n1,2,3\n", "1,2\n", "it is one line, and was two: the file's header goes before"),
        ("/in/a.tsv", "1\t2\t3\n", "1\t2\n3\t4\n", "it is two lines, and was one"),
        ("/in/a.tsv", "1\t2\t3\n", "1\t2\n", None),
    ],
)
def test_a_record_is_one_of_its_source_or_refused(
    place: str, former: str | None, text: str, problem: str | None
) -> None:
    bad = letter(10, text=former or "{")
    bad = replace(bad, key=replace(bad.key, partition=Partition("source", place)))
    stored = StoredLetter(7, bad, 0, 0, {"a sink": None})
    if problem is None:
        check_record(stored, text.encode())
        return
    with pytest.raises(ConfigError) as refused:
        check_record(stored, text.encode())
    message = str(refused.value)
    assert message.startswith(f"dead letter 7 is one record of {place}, and the new content is not: {problem}")
    assert message.endswith("give one record, or --as-is if its source reads in another way than that name tells")


def test_an_edit_that_makes_several_records_of_one_is_refused(call: Any, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text('{"id": 1}\n{"id": 2}\n')
    ended = call("dlq", "edit", 1, "--set-raw", tmp_path / "new", "--data-dir", letters, "-o", "json")
    assert (ended.code, "it is 2 lines, and each is a record" in ended.err) == (2, True)
    with opened(letters) as store:
        assert not store.get(1).edited


def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VISUAL", str(path))


def test_an_editor_gets_the_record_and_its_newline_is_not_kept(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, """sed -i 's/"x": /"x": 5/' "$1"; echo >> "$1"; touch -d 2001-01-01 "$1" """)
    assert call("dlq", "edit", 1, "--data-dir", letters).code == 0
    with opened(letters) as store:
        assert store.get(1).letter.raw == b'{"id": 1, "x": 5}'


def test_an_editor_gets_the_row_of_a_later_stage(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, """sed -i 's/12.50/13.75/' "$1"; touch -d 2001-01-01 "$1" """)
    assert call("dlq", "edit", 3, "--data-dir", letters).code == 0
    assert call("dlq", "show", 3, "--data-dir", letters, "-o", "json").json["row"] == {**ROW_OBJECT, "amount": "13.75"}


def test_an_editor_that_changes_nothing_changes_nothing(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, """touch -d 2001-01-01 "$1" """)
    assert "nothing was changed" in call("dlq", "edit", 1, "--data-dir", letters).err
    with opened(letters) as store:
        assert not store.get(1).edited


def test_an_editor_that_leaves_nothing_changes_nothing(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, """: > "$1"; touch -d 2001-01-01 "$1" """)
    with opened(letters) as store:
        before = store.get(1)
    ended = call("dlq", "edit", 1, "--data-dir", letters)
    assert (ended.code, "what the editor gave back is blank" in ended.err) == (2, True)
    with opened(letters) as store:
        assert store.get(1) == before


def test_an_editor_that_removes_the_file_changes_nothing(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, """rm "$1" """)
    ended = call("dlq", "edit", 1, "--data-dir", letters)
    assert (ended.code, "the editor removed the file" in ended.err) == (1, True)


def test_what_was_written_in_vain_is_kept_in_a_file(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    editor(tmp_path, monkeypatch, """echo '{"id": "hours of work"}' > "$1"; touch -d 2001-01-01 "$1" """)
    ended = call("dlq", "edit", 3, "--data-dir", letters)
    assert ended.code == 2
    (kept,) = tmp_path.glob("conveyord-letter-3-*")
    assert f"what you wrote is in {kept}, give it with --set-row" in ended.err
    assert "hours of work" in kept.read_text()


def test_an_editor_that_fails_is_exit_code_1(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "exit 3")
    assert call("dlq", "edit", 1, "--data-dir", letters).code == 1


# -------------------------------------------------------------------- export and purge


def test_an_export_holds_every_letter_in_both_formats(call: Any, letters: Path, tmp_path: Path) -> None:
    lines, table = tmp_path / "out.jsonl", tmp_path / "out.parquet"
    assert call("dlq", "export", lines, "--data-dir", letters, "-o", "json").json == {
        "file": str(lines),
        "letters": 4,
        "without_content": 0,
        "damaged": 0,
    }
    assert "3 dead letters written" in call("dlq", "export", table, "--pipeline", "job", "--data-dir", letters).out
    objects = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert objects[2] == call("dlq", "show", 3, "--data-dir", letters, "-o", "json").json
    rows = pq.read_table(table).to_pylist()
    assert [row["raw"] for row in rows] == [b'{"id": 1, "x": }', b"\xff\xfe\x00bin", b'{"id": 7}']
    assert json.loads(rows[2]["row"]) == ROW_OBJECT
    assert rows[0]["first"].isoformat(timespec="milliseconds").replace("+00:00", "Z") == objects[0]["first"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.jsonl", "out.parquet"]


def test_an_empty_export_is_a_file_too(call: Any, data_dir: Path, tmp_path: Path) -> None:
    assert call("dlq", "export", tmp_path / "o.parquet", "--data-dir", data_dir).code == 0
    assert pq.read_table(tmp_path / "o.parquet").num_rows == 0


def test_a_purge_deletes_what_is_selected(call: Any, letters: Path) -> None:
    ended = call("dlq", "purge", "--code", "BAD", "--yes", "--data-dir", letters, "-o", "json")
    assert ended.json == {"purged": 2}
    assert call("dlq", "list", "--data-dir", letters, "-o", "json").json["total"] == 2
    assert "2 dead letters deleted" in call("dlq", "purge", "--all", "--yes", "--data-dir", letters).out
    assert "so far 4 purged" in call("dlq", "list", "--data-dir", letters).err


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 4), (b"y\n", 0)])
def test_a_purge_asks_on_a_terminal(shell: Any, letters: Path, answer: bytes, left: int) -> None:
    leader, follower = os.openpty()
    process = shell.popen("dlq", "purge", "--all", "--data-dir", str(letters), cwd=letters, stdin=follower)
    os.close(follower)
    os.write(leader, answer)
    ended = shell.finish(process)
    os.close(leader)
    assert ended.code == 0
    assert "Delete 4 dead letters for good?" in ended.err
    with opened(letters) as store:
        assert store.count() == left


def test_what_changes_letters_is_refused_while_a_run_owns_the_directory(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, monkeypatch, "echo opened in vain >&2; exit 3")
    with owned(letters):
        for arguments in (["purge", "--all", "--yes"], ["edit", "1", "--set-raw", __file__], ["edit", "1"]):
            ended = call("dlq", *arguments, "--data-dir", letters)
            assert ended.code == 1
            assert f"is in use by process {os.getpid()}" in ended.err
        for arguments in (["list"], ["show", "1"], ["export", str(tmp_path / "o.jsonl")]):
            assert call("dlq", *arguments, "--data-dir", letters).code == 0


# -------------------------------------------------------------------- damage


def test_a_damaged_letter_is_listed_shown_exported_and_purged(call: Any, letters: Path, tmp_path: Path) -> None:
    segments(letters)[0].unlink()
    assert call("dlq", "list", "--data-dir", letters, "-o", "json").json["total"] == 4
    shown = call("dlq", "show", 1, "--data-dir", letters)
    assert (shown.code, "damaged      segment-00000001.bin is missing" in shown.out) == (0, True)
    ended = call("dlq", "edit", 1, "--data-dir", letters)
    assert (ended.code, "nothing to edit: segment-00000001.bin is missing" in ended.err) == (1, True)
    with opened(letters) as store:
        store.put([letter(50, raw=None), letter(60)], now())
    exported = call("dlq", "export", tmp_path / "o.jsonl", "--data-dir", letters)
    assert (exported.code, exported.out) == (0, f"6 dead letters written to {tmp_path}/o.jsonl\n")
    assert "5 of them without content, 4 damaged, which `conveyord dlq show ID` explains\n" in exported.err
    counts = call("dlq", "export", tmp_path / "o.parquet", "--data-dir", letters, "-o", "json").json
    assert (counts["letters"], counts["without_content"], counts["damaged"]) == (6, 5, 4)
    assert json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["damage"] == "segment-00000001.bin is missing"
    assert call("dlq", "purge", "--all", "--yes", "--data-dir", letters, "-o", "json").json == {"purged": 6}


@pytest.mark.parametrize("verb", [["list"], ["show", "1"], ["export", "x.jsonl"], ["purge", "--all", "--yes"]])
def test_a_damaged_index_is_a_sentence(
    call: Any, letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (letters / "dead-letters" / "index.db").write_bytes(b"no database at all" * 100)
    ended = call("dlq", *verb, "--data-dir", letters, "-o", "json")
    assert (ended.code, ended.json["error"]["code"]) == (1, "CORRUPT")
    assert "or move the directory" in ended.err
    assert list(tmp_path.glob("*x.jsonl*")) == []


def test_retention_in_the_configuration_is_kept_by_what_opens_the_letters(
    call: Any, letters: Path, tmp_path: Path
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f'data_dir = "{letters}"\n[dead_letters]\nretention = "1h"\n')
    call("dlq", "purge", "--id", 2, "--yes", "--config", config)
    with opened(letters) as store:
        assert [stored.id for stored in store.select(Selection())] == [3, 4]
        assert store.counters().expired == 1
