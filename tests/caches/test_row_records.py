"""Records of rows: joined from parts without holding them, and changed pictures noticed."""

import os
import tracemalloc
from pathlib import Path

import pytest

from mmalign.caches import RowRecords, RowRecordsBuild, key_of


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut would, and that is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fill(build: RowRecordsBuild, parts: range, files: list[list] | None = None) -> None:
    for part in parts:
        records = [{"row": row, "text": "é" * row} for row in build.rows(part)]
        build.store(part, records, [key_of(str(row)) for row in build.rows(part)], files or [])


def test_records_are_joined_from_parts(tmp_path: Path) -> None:
    build = RowRecordsBuild(tmp_path, {"table": "a"}, 1000)
    assert build.parts > 50
    assert [row for part in range(build.parts) for row in build.rows(part)] == list(range(1000))
    assert all(row in build.rows(build.part_of(row)) for row in range(1000))
    fill(build, range(10))
    again = RowRecordsBuild(tmp_path, {"table": "a"}, 1000)
    assert again.stored() == set(range(10))
    assert RowRecords.find(tmp_path, {"table": "a"}) is None
    fill(again, range(10, build.parts))
    again.join()
    again.join()
    records = RowRecords.find(tmp_path, {"table": "a"})
    assert records is not None
    assert len(records) == 1000
    assert [records[row] for row in (0, 1, 999)] == [{"row": row, "text": "é" * row} for row in (0, 1, 999)]
    assert sorted(key.decode() for key in records.keys) == sorted(key_of(str(row)) for row in range(1000))
    assert not list(build.folder.glob("part-*"))
    assert RowRecords.find(tmp_path, {"table": "b"}) is None


def test_joining_holds_no_more_than_a_few_parts(tmp_path: Path) -> None:
    """16 MiB of records in 64 parts."""
    build = RowRecordsBuild(tmp_path, {}, 64 * 256)
    for part in range(build.parts):
        build.store(part, [{"row": row, "text": "x" * 1000} for row in build.rows(part)], [key_of("one")], [])
    tracemalloc.start()
    build.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (build.folder / "rows.safetensors").stat().st_size > 2**24
    assert peak < 2**22
    records = RowRecords.find(tmp_path, {})
    assert records is not None
    assert (len(records), len(records.keys)) == (64 * 256, 1)
    assert records[64 * 256 - 1]["row"] == 64 * 256 - 1


def test_records_without_rows_pictures_or_keys(tmp_path: Path) -> None:
    build = RowRecordsBuild(tmp_path, {}, 0)
    build.join()
    records = RowRecords.find(tmp_path, {})
    assert records is not None
    assert (len(records), len(records.keys), records.changed_file()) == (0, 0, None)


def test_a_picture_that_changed_between_two_rows_is_noticed(tmp_path: Path) -> None:
    """One row was encoded from what it was before, so its latest mark is not enough."""
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    mark = [3, picture.stat().st_mtime_ns]
    build = RowRecordsBuild(tmp_path, {}, 1)
    fill(build, range(1), [[str(picture), 2, 7], [str(picture), *mark]])
    build.join()
    records = RowRecords.find(tmp_path, {})
    assert records is not None
    assert records.changed_file() == str(picture)


def test_records_notice_a_changed_picture(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    build = RowRecordsBuild(tmp_path, {}, 1)
    fill(build, range(1), [[str(picture), 3, picture.stat().st_mtime_ns]])
    build.join()
    records = RowRecords.find(tmp_path, {})
    assert records is not None
    assert records.changed_file() is None
    os.utime(picture, ns=(0, 0))
    assert records.changed_file() == str(picture)
    build.discard(lambda records: None)
    assert build.joined
    build.discard(lambda records: records.changed_file())
    assert not build.joined
    assert RowRecords.find(tmp_path, {}) is None
