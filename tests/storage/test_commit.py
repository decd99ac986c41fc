"""Committing to a real table: opening, adopting, refusing, and what others do to the table meanwhile."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning.fence import INLINE_MAX, fence_key
from conveyord.storage.lake.catalog import open_embedded, open_embedded_read_only
from conveyord.storage.lake.commit import Rebuild
from conveyord.storage.lake.fileio import local_path
from conveyord.storage.lake.ledger import Ledger
from tests.storage.lake_rig import NAME, PIPELINE, SCHEMA, Run, assert_exactly_once, load, offsets


def foreign_append(data_dir: Path, value: int = -1) -> None:
    table = open_embedded(data_dir).load_table(NAME)
    table.append(pa.table({"offset": [value]}, schema=SCHEMA))


def test_a_restart_goes_on_from_the_table_alone(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    for _ in range(3):
        run.commit_next()
    (tmp_path / "runs.db").unlink()
    again = Run(tmp_path).open()
    assert again.committer.fence.n == 3
    again.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 4


def test_a_batch_without_rows_still_moves_fence_and_summary_together(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    run.commit_next(rows=0)
    table = load(tmp_path)
    assert table.current_snapshot().summary[f"conveyord.{PIPELINE}.batch-seq"] == "1"
    assert offsets(table) == []
    assert Run(tmp_path).open().next_offset == 3


def test_a_table_with_rows_and_no_fence_needs_adopt(tmp_path: Path) -> None:
    catalog = open_embedded(tmp_path)
    catalog.create_namespace("ns")
    catalog.create_table(NAME, SCHEMA, properties={"format-version": "2"})
    foreign_append(tmp_path)
    with pytest.raises(Refused, match=r"holds 1 row but no fence of ns/p.*adopt: true"):
        Run(tmp_path).open()
    run = Run(tmp_path).open(adopt=True)
    run.commit_next()
    assert offsets(load(tmp_path)) == [-1, 0, 1, 2]
    assert load(tmp_path).properties["commit.retry.num-retries"] == "0"


def test_an_empty_table_gets_its_fence_without_asking(tmp_path: Path) -> None:
    catalog = open_embedded(tmp_path)
    catalog.create_namespace("ns")
    catalog.create_table(NAME, SCHEMA)
    run = Run(tmp_path).open()
    run.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_renamed_pipeline_takes_its_fence_along_in_one_commit(tmp_path: Path) -> None:
    Run(tmp_path).open().commit_next()
    run = Run(tmp_path, pipeline="ns/new").open(adopt_from=PIPELINE)
    assert fence_key(PIPELINE) not in load(tmp_path).properties
    run.commit_next()
    assert assert_exactly_once(load(tmp_path), "ns/new") == 2
    with pytest.raises(Refused, match="no fence of ns/p"):
        Run(tmp_path).open()


def test_taking_over_from_a_name_that_never_wrote_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).open().commit_next()
    with pytest.raises(Refused, match="no fence of ns/wrong to take over"):
        Run(tmp_path, pipeline="ns/new").open(adopt_from="ns/wrong")


def test_two_pipelines_share_a_table_without_disturbing_each_other(tmp_path: Path) -> None:
    one = Run(tmp_path).open()
    one.commit_next()
    two = Run(tmp_path, pipeline="ns/q").open(adopt=True)
    for _ in range(3):
        one.commit_next(rows=0)
        two.commit_next(rows=0)
    assert Run(tmp_path).open().committer.fence.n == 4
    assert Run(tmp_path, pipeline="ns/q").open().committer.fence.n == 3


def test_of_two_runs_of_one_pipeline_the_late_one_stops_and_writes_nothing(tmp_path: Path) -> None:
    first = Run(tmp_path).open()
    zombie = Run(tmp_path).open()
    first.commit_next()
    with pytest.raises(Refused, match="another run of ns/p has committed batch 1"):
        zombie.commit_next()
    first.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 2


def test_a_rolled_back_table_is_refused_at_open_and_at_commit(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    run.commit_next()
    run.commit_next()
    table = load(tmp_path)
    table.manage_snapshots().rollback_to_snapshot(table.current_snapshot().parent_snapshot_id).commit()
    with pytest.raises(Refused, match=r"fence says batch 2.*says 1.*Roll forward"):
        run.commit_next()
    with pytest.raises(Refused, match="Roll forward"):
        Run(tmp_path).open()


def test_a_rollback_to_before_the_first_batch_is_noticed_although_no_own_snapshot_is_left(
    tmp_path: Path,
) -> None:
    catalog = open_embedded(tmp_path)
    catalog.create_namespace("ns")
    catalog.create_table(NAME, SCHEMA, properties={"format-version": "2"})
    foreign_append(tmp_path)
    Run(tmp_path).open(adopt=True).commit_next()
    table = load(tmp_path)
    table.manage_snapshots().rollback_to_snapshot(table.current_snapshot().parent_snapshot_id).commit()
    foreign_append(tmp_path, -2)
    with pytest.raises(Refused, match="set back to before that batch"):
        Run(tmp_path).open()


def test_expiry_of_the_own_snapshot_by_others_is_no_rollback(tmp_path: Path) -> None:
    Run(tmp_path).open().commit_next()
    foreign_append(tmp_path)
    table = load(tmp_path)
    table.maintenance.expire_snapshots().by_id(table.metadata.snapshots[0].snapshot_id).commit()
    run = Run(tmp_path).open()
    run.commit_next()
    assert offsets(load(tmp_path)) == [-1, 0, 1, 2, 3, 4, 5]


def test_a_dropped_table_halts_the_batch_and_a_recreated_one_too(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    files = run.files(0)
    open_embedded(tmp_path).drop_table(NAME)
    following = run.committer.fence.advanced([], Tally(), 0)
    with pytest.raises(Refused, match="no longer in the catalog"):
        run.committer.commit(files, following, spec_id=0, schema_id=0)
    Run(tmp_path).open()
    with pytest.raises(Refused, match="dropped and created again"):
        run.committer.commit(files, following, spec_id=0, schema_id=0)
    assert offsets(load(tmp_path)) == []


def test_a_repartitioned_table_asks_for_the_files_to_be_written_again(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    following = run.committer.fence.advanced([], Tally(), 0)
    files = run.files(0)
    with load(tmp_path).update_spec() as update:
        update.add_field("offset", BucketTransform(4))
    with pytest.raises(Rebuild, match="partition spec 0, the table has 1"):
        run.committer.commit(files, following, spec_id=0, schema_id=0)
    run.commit_next()
    assert assert_exactly_once(load(tmp_path)) == 1
    assert not local_path(files[0].file_path).exists(), "the outdated files are garbage and known as such"


def test_a_column_added_by_others_does_not_matter_and_one_dropped_does(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    files = run.files(0)
    with load(tmp_path).update_schema() as update:
        update.add_column("extra", LongType())
    following = run.committer.fence.advanced([Span(Partition("source", "file"), 0, 3, "m")], Tally(read=3), 3)
    run.committer.commit(files, following, spec_id=0, schema_id=0)
    with load(tmp_path).update_schema() as update:
        update.delete_column("extra")
    with pytest.raises(Rebuild, match="lost columns"):
        run.committer.commit([], run.committer.fence.advanced([], Tally(), 0), spec_id=0, schema_id=1)


def test_retries_switched_on_by_others_stop_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    with load(tmp_path).transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": "4"})
    with pytest.raises(Refused, match="num-retries is 4 and must be 0"):
        run.commit_next()


def test_foreign_appends_at_every_commit_do_not_stop_progress(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    commit_table, foreign = run.catalog.commit_table, []

    def contended(*arguments: object) -> object:
        if len(foreign) < 20 and len(foreign) % 5 < 4:
            foreign.append(-1 - len(foreign))
            foreign_append(tmp_path, foreign[-1])
        elif len(foreign) < 20:
            foreign.append(None)
        return commit_table(*arguments)

    run.catalog.commit_table = contended
    while len(foreign) < 20:
        run.commit_next()
    expected = sorted(value for value in foreign if value is not None)
    assert offsets(load(tmp_path)) == expected + list(range(run.committer.fence.rows))
    assert run.waits
    assert max(run.waits) <= 1.0


def test_many_finished_files_leave_the_property_small_and_survive_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    total = 2 * INLINE_MAX + 40
    for number in range(total // 8):
        spans = [Span(Partition("source", f"file-{number}-{part}"), 0, 5, "m" * 64) for part in range(8)]
        following = run.committer.fence.advanced(spans, Tally(), 0)
        run.committer.commit([], following, spec_id=0, schema_id=0)
    table = load(tmp_path)
    assert len(table.properties[fence_key(PIPELINE)]) < 20_000
    again = Run(tmp_path)
    assert len(again.open().committer.fence.positions) == total
    archives = list(local_path(table.location()).rglob("conveyord-fence-*"))
    assert len(archives) <= 2, "superseded archives are deleted by the next maintenance"
    archives[0].unlink()
    for path in archives[1:]:
        path.unlink()
    with pytest.raises(Corrupt, match=r"is missing, but table ns.t names it; restore"):
        Run(tmp_path).open()


def test_reading_beside_the_owner_creates_nothing(tmp_path: Path) -> None:
    from conveyord.core.errors import ConfigError

    with pytest.raises(ConfigError, match=r"no catalog.db in it"):
        open_embedded_read_only(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Run(tmp_path).open().commit_next()
    catalog = open_embedded_read_only(tmp_path)
    assert offsets(catalog.load_table(NAME)) == [0, 1, 2]
    with pytest.raises(Exception, match="readonly"):
        catalog.drop_table(NAME)
    assert load(tmp_path) is not None


def test_a_warehouse_path_that_readers_would_misread_is_refused(tmp_path: Path) -> None:
    from conveyord.core.errors import ConfigError

    with pytest.raises(ConfigError, match="# cannot stand in the path"):
        open_embedded(tmp_path / "a#b")
    run = Run(tmp_path / "with space é").open()
    run.commit_next()
    assert assert_exactly_once(load(tmp_path / "with space é")) == 1


def test_a_damaged_ledger_says_that_it_may_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_bytes(b"not a database" * 100)
    with pytest.raises(Corrupt, match="delete that file"):
        Ledger(tmp_path)
