"""Unusable rows are counted, named and skipped up to a share, refused above it, and never replaced."""

import json

import pytest
from making_data import png, row
from PIL import Image

from mmalign.data import UnreadableImage, open_pickapic, open_source, prepare_pair, verify
from mmalign.training.config import DataConfig

BROKEN = {
    "truncated": png(64, 64)[:400],
    "not an image": b"<html>not found</html>",
    "no bytes": b"",
    "null": None,
}


def config(path, **settings) -> DataConfig:
    return DataConfig(source="pickapic", path=str(path), **settings)


@pytest.fixture
def shard_with(write_shard):
    """A shard of ``rows`` rows of which those in ``broken`` have an unreadable picture."""

    def write(rows: int, broken: dict[int, bytes | None], column: str = "jpg_1"):
        return write_shard(
            [row(number) | ({column: broken[number]} if number in broken else {}) for number in range(rows)]
        )

    return write


@pytest.mark.parametrize("column", ["jpg_0", "jpg_1"])
@pytest.mark.parametrize("kind", BROKEN)
def test_unreadable_rows_are_counted_named_and_skipped(shard_with, kind, column):
    table = open_source(config(shard_with(5, {2: BROKEN[kind]}, column), max_corrupt=0.2))
    assert table.prompts == [f"prompt {number}" for number in (0, 1, 3, 4)]
    assert [pair.chosen.data for pair in table] == [png(seed=2 * number) for number in (0, 1, 3, 4)]
    [(sample_id, reason)] = table.report.corrupt
    assert sample_id == "shard.parquet:2"
    assert f"shard.parquet:2 {column}" in reason
    assert (table.report.rows, table.report.kept) == (5, 4)
    assert "1 unusable row skipped: shard.parquet:2" in str(table.report)


@pytest.mark.parametrize(("rows", "bad", "share"), [(100, 29, 0.29), (100, 1, 0.01), (7, 1, 1 / 7), (3, 0, 0.0)])
def test_the_share_itself_is_allowed_and_one_more_is_not(shard_with, rows, bad, share):
    assert len(open_source(config(shard_with(rows, dict.fromkeys(range(bad), b"")), max_corrupt=share))) == rows - bad
    with pytest.raises(ValueError, match=rf"{bad + 1} of {rows} rows cannot be used|at least \d+ of {rows}"):
        open_source(config(shard_with(rows, dict.fromkeys(range(bad + 1), b"")), max_corrupt=share))


def test_the_error_lists_the_first_ten_with_reasons(shard_with):
    path = shard_with(40, dict.fromkeys(range(0, 40, 2), b"nonsense"))
    with pytest.raises(ValueError, match="cannot be used") as caught:
        open_source(config(path, max_corrupt=0.4))
    message = str(caught.value)
    assert message.count("not an image in a known format") == 10
    assert "shard.parquet:0" in message
    assert "data.max_corrupt=0.4" in message


def test_a_hopeless_file_is_refused_early(shard_with, monkeypatch):
    seen = []
    monkeypatch.setattr("mmalign.data.verification.problem_of", lambda pair: seen.append(pair.sample_id) or "broken")
    with pytest.raises(ValueError, match="at least 10 of 400 rows"):
        open_source(config(shard_with(400, {})))
    assert 10 <= len(seen) < 100


def test_rows_that_the_source_refused_count_towards_the_share(write_shard):
    rows = [row(0), row(1) | {"caption": None}, row(2) | {"jpg_0": b""}, row(3)]
    path = write_shard(rows)
    assert len(open_source(config(path, max_corrupt=0.5)).report.corrupt) == 2
    with pytest.raises(ValueError, match="2 of 4 rows cannot be used"):
        open_source(config(path, max_corrupt=0.49))


def test_ties_that_were_dropped_are_not_decoded(shard_with, write_shard):
    table = open_source(config(write_shard([row(0), row(1, 0.5) | {"jpg_0": b""}]), max_corrupt=0.0))
    assert (len(table), table.report.corrupt) == (1, ())


def test_nothing_left(shard_with):
    with pytest.raises(ValueError, match="no usable row is left"):
        open_source(config(shard_with(2, {0: b"", 1: b""}), max_corrupt=1.0))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_skipped_with_its_reason(shard_with, monkeypatch):
    monkeypatch.setattr("mmalign.data.decoding.MAX_PIXELS", 64 * 64 - 1)
    [(_, reason)] = open_source(config(shard_with(2, {1: png(64, 64)}), max_corrupt=0.5)).report.corrupt
    assert "64x64 is more than 4095 pixels; scale it down" in reason


def test_a_picture_that_vanishes_later_is_an_error_that_names_the_row(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [{"prompt": str(number), "chosen": "a.png", "rejected": "b.png"} for number in range(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = open_source(DataConfig(source="images", path=str(tmp_path / "pairs.jsonl")))
    (tmp_path / "b.png").unlink()
    with pytest.raises(UnreadableImage, match=r"pairs\.jsonl:2 rejected=b\.png: file not found"):
        prepare_pair(table[1], resolution=8)


def test_the_record_spares_a_second_check_of_the_same_rows(shard_with, tmp_path, monkeypatch):
    path, record = shard_with(4, {1: b""}), tmp_path / "run" / "checked.json"
    first = open_source(config(path, max_corrupt=0.5), record=record)
    assert [file.name for file in record.parent.iterdir()] == ["checked.json"]
    monkeypatch.setattr("mmalign.data.verification.problem_of", lambda pair: pytest.fail("decoded again"))
    again = open_source(config(path, max_corrupt=0.5), record=record)
    assert again.report == first.report
    assert again.fingerprint == first.fingerprint
    with pytest.raises(ValueError, match="1 of 4 rows"):
        open_source(config(path, max_corrupt=0.1), record=record)
    monkeypatch.undo()
    changed = shard_with(4, {1: b"", 2: b""})
    assert len(open_source(config(changed, max_corrupt=0.5), record=record)) == 2


def test_the_fingerprint_tells_what_was_skipped(shard_with):
    path = shard_with(4, {1: b""})
    indexed = open_pickapic(config(path))
    assert verify(indexed, 0.5).fingerprint != indexed.fingerprint
