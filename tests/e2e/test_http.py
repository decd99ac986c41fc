"""The http source and the http sink as a user runs them: killed, run again, nothing lost, no secret anywhere."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import HEAD, Job, conveyord, lines
from tests.engine.http_rig import HANG, Answer, Asked, said, serving

SECRET = "hunter2-do-not-tell"


class HttpJob(Job):
    """A job from files to an address, with dead letters."""

    url = ""

    @property
    def file(self) -> Path:
        path = self.home / "job.yaml"
        sink = {
            "name": "out",
            "type": "http",
            "url": self.url,
            "headers": {"X-Token": "env:TOKEN"},
            "batch": {"rows": 10},
        }
        spec = {
            "source": {**self.source, "name": "in", "block_bytes": "64KiB", "batch_rows": 25},
            "sink": sink,
            "dlq": {},
        }
        path.write_text(f'{HEAD}metadata: {{"name": "job"}}\nspec: {json.dumps(spec)}\n', encoding="utf-8")
        return path


def secrets_in(home: Path) -> list[Path]:
    """The files below `home` that hold the secret."""
    return [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_pages_become_rows_exactly_once_whenever_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    hang_at, said_errors = 30, ""

    def script(asked: Asked) -> Answer | str:
        first = int(asked.query.get("from", 0))
        if (asked.headers.get("x-token"), asked.query.get("key")) != (SECRET, SECRET):
            return said("who are you", 401)
        if first == hang_at:
            stuck.set()
            return HANG
        items = [{"id": n, "at": f"2026-01-01T00:00:{n:02d}Z"} for n in range(first, min(first + 10, 60))]
        return said({"items": items, "next": f"?from={first + 10}&key={SECRET}" if first < 50 else None})

    stuck = threading.Event()
    with serving(script) as server:
        source = {"type": "http", "url": server.url("/list"), "once": True, "records": "items", "next_link": "next"}
        source |= {"headers": {"X-Token": "env:TOKEN"}, "params": {"key": "env:TOKEN"}}
        job = Job(tmp_path, source=source, sink={"commit": {"rows": 10}})
        for hang_at in (20, 50):
            stuck.clear()
            running = job.start()
            assert running.until(lambda here=hang_at: stuck.is_set() and len(job.ids()) >= here)
            running.killed_after(0)
            said_errors += running.wait().err
        hang_at = -1
        ended = job.run()
        assert ended.succeeded()["rows_in"] == 10
        assert job.run().succeeded()["rows_in"] == 0
    job.holds(range(60))
    assert job.sql('SELECT count(DISTINCT "at") FROM t') == [(60,)]
    job.audit()
    assert SECRET not in said_errors + ended.err + ended.out
    assert secrets_in(tmp_path) == []


def test_rows_arrive_at_least_once_and_by_their_keys_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    taken: dict[str, list[int]] = {}
    requests, limit, stuck, poison = 0, 7, threading.Event(), {42}

    def script(asked: Asked) -> Answer | str:
        nonlocal requests
        ids = [row["id"] for row in asked.json]
        if 42 in poison and 42 in ids:
            return said({"token": asked.headers["x-token"]}, 422)
        taken.setdefault(asked.headers["idempotency-key"], ids)
        requests += 1
        if requests >= limit:  # taken, and the answer is lost with the process
            stuck.set()
            return HANG
        return said({})

    with serving(script) as server:
        monkeypatch.setattr(HttpJob, "url", server.url("/in?table=a"))
        job = HttpJob(tmp_path)
        (job.input / "a.jsonl").write_bytes(lines(range(200)))
        running = job.start()
        assert running.until(stuck.is_set)
        running.killed_after(0)
        first = running.wait()
        limit = 10**9
        second = job.run()
        assert second.succeeded()["delivery"] == "at-least-once"
        assert job.run().succeeded()["rows_in"] == 0
        assert sorted(n for ids in taken.values() for n in ids) == [n for n in range(200) if n != 42]
        letters = conveyord("dlq", "list", "--data-dir", job.data_dir, "-o", "json", cwd=tmp_path)
        poison.clear()
        replay = conveyord("dlq", "replay", job.file, "--data-dir", job.data_dir, "-o", "json", cwd=tmp_path)
        assert replay.code == 0, replay.err
        assert [report["replayed"] for report in json.loads(replay.out)] == [1]
        assert job.run().succeeded()["rows_in"] == 0
    assert sorted(n for ids in taken.values() for n in ids) == [*range(200)]
    assert "42" in letters.out
    assert "answers 422" in letters.out
    told = "".join(ended.err + ended.out for ended in (first, second, letters, replay))
    assert SECRET not in told
    assert secrets_in(tmp_path) == []


def test_what_is_wrong_with_an_address_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    options: dict[str, Any] = {"type": "http", "url": "ftp://example.org/list", "cursor": {"param": "since"}}
    path.write_text(
        f"{HEAD}metadata:\n  name: p\nspec:\n  source:\n"
        + "".join(f"    {key}: {json.dumps(value)}\n" for key, value in options.items())
        + "  sink: {type: stdout_pretty}\n"
    )
    ended = conveyord("validate", path, cwd=tmp_path)
    assert ended.code == 2
    assert "p.yaml:8:" in ended.out + ended.err
    assert "must begin with http:// or https:// and name a host" in ended.out + ended.err
    assert "p.yaml:9:" in ended.out + ended.err
    assert "needs either path (in the answer) or from_record" in ended.out + ended.err
