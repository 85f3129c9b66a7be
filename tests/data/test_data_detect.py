"""data.source: auto, for every format; and what is recognised but not read."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making_data import FIXTURE, png, row

from mmalign.data import SOURCES, detect_source, open_source, open_table, write_canonical
from mmalign.training.config import DataConfig

# Name of a file -> what it holds (JSON where it is no text), and the source that reads it.
TEXTS = {
    "train.json": ([{"prompt": "x", "file_path": ["a", "b"], "human_preference": [1, 0]}], "hpdv2"),
    "test.json": ([{"prompt": "x", "image_path": ["a", "b"], "rank": [1, 2]}], "hpdv2"),
    "ir.json": ([{"id": 1, "prompt": "x", "generations": ["a", "b"], "ranking": [1, 2]}], "imagereward"),
    "rows.json": ([{"prompt_id": 1, "prompt": "x", "image_path": "a", "rank": 1}], "imagereward"),
    "kto.csv": ("file_path,caption,label\na,x,1\n", "kto_csv"),
    "train_processed_v3.csv": ("file_name,caption,split\na,x,exclusive_win\n", "kto_csv"),
    "mine.csv": ("prompt,image,label\nx,a,1\n", "images"),
    "pairs.jsonl": ('{"prompt": "x", "chosen": "a", "rejected": "b"}', "images"),
    "rankings.jsonl": ('{"caption": "x", "candidates": ["a", "b"], "ranks": [1, 2]}', "images"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(tmp_path, name):
    content, source = TEXTS[name]
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    found = detect_source(str(tmp_path / name))
    assert found.source == source
    assert name in found.why
    settings = {"mixed": "drop"} if "split" in str(content) else {}
    table = open_table(DataConfig(source="auto", path=str(tmp_path / name), **settings))
    assert table.fingerprint == open_table(DataConfig(source=source, path=str(tmp_path / name), **settings)).fingerprint
    assert f"Recognised as {source}: {found.why}" in str(table.report)


PARQUET = {
    "pickapic": {"caption": "x", "jpg_0": b"", "jpg_1": b"", "label_0": 1, "label_1": 0},
    "pickapic_rankings": {"prompt": "x", "best_image_uid": "a", "image_1_uid": "a", "image_2_uid": "b"},
    "genai_bench": {"prompt": "x", "left_image": b"", "right_image": b"", "vote_type": "leftvote"},
    "imagereward": {"prompt_id": "1", "prompt": "x", "rank": 1, "image": b""},
    "audio_alpaca": {
        "prompt": "x",
        "chosen": {"bytes": b"RIFF0", "path": "a"},
        "rejected": {"bytes": b"", "path": "b"},
    },
}


@pytest.mark.parametrize("source", PARQUET)
def test_parquet(tmp_path, source):
    pq.write_table(pa.Table.from_pylist([PARQUET[source]]), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", tmp_path, tmp_path / "*.parquet"):
        assert detect_source(str(path)).source == source


def test_canonical_and_shards(tmp_path, write_shard):
    table = open_table(DataConfig(source="pickapic", path=str(FIXTURE)))
    write_canonical(table, tmp_path / "c" / "a.parquet")
    assert detect_source(str(tmp_path / "c")).source == "canonical"
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t" / "0.tar", "w"):
        pass
    for path in (tmp_path / "t", tmp_path / "t" / "0.tar", tmp_path / "t" / "*.tar"):
        assert detect_source(str(path)).source == "webdataset"
    (tmp_path / "c" / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds \.parquet and \.tar files; choose with a glob"):
        detect_source(str(tmp_path / "c"))


def test_photographs_as_they_are_and_as_unary_rows():
    table = open_source(DataConfig(source="auto", path=str(FIXTURE)))
    assert (table.report.source, len(table)) == ("pickapic", 9)
    assert len(open_source(DataConfig(source="auto", path=str(FIXTURE), as_="unary"))) == 18
    each = open_source(DataConfig(source="auto", path=str(FIXTURE), as_="unary", mixed="desirable"))
    assert len(each) == len({key for names in table.storage.image_keys() for key in names}) <= 18


def test_settings_that_the_source_found_would_ignore(tmp_path):
    with pytest.raises(ValueError, match=r"data\.mixed: drop needs data\.as: unary"):
        open_source(DataConfig(source="auto", path=str(FIXTURE), mixed="drop"))
    with pytest.raises(ValueError, match=r"data\.images=.* has no meaning for source pickapic"):
        open_source(DataConfig(source="auto", path=str(FIXTURE), images=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", [{"a": 1, "b": 2}], "no source reads its first item, a, b; rows of your own go into a .jsonl"),
        ("a.json", [3], "no source reads its first item, a int"),
        ("a.csv", "a,b\n1,2\n", r"no source reads its columns \(a, b\)"),
        ("a.csv", b"\xff\xfe\x00", "not CSV in UTF-8"),
        ("a.jsonl", "", r"no source reads its columns \(none\)"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b"}', r"no source reads its columns \(chosen, rejected\)"),
        ("a.txt", "x", r"no source reads \.txt; known are \.parquet"),
    ],
)
def test_what_no_source_reads(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        detect_source(str(path))


def test_columns_and_folders_that_no_source_reads(tmp_path):
    clip = {"bytes": png(), "path": "a.png"}
    pq.write_table(pa.Table.from_pylist([{"prompt": "x", "chosen": clip, "rejected": clip}]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"reads its columns prompt \(string\), chosen \(struct\)"):
        detect_source(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"is a folder; give the file itself \(it holds b\.jsonl\)"):
        detect_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"matches no \.parquet file"):
        detect_source(str(tmp_path / "*.zip"))
    with pytest.raises(ValueError, match="does not exist"):
        detect_source(str(tmp_path / "nowhere"))


def audio(tmp_path, metadata=None, data=b"RIFF\x00\x00"):
    clip = {"bytes": data, "path": "clip.wav"}
    rows = [{"prompt": "rain", "chosen": clip, "rejected": clip, "strategy": "a"}] * 3
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "train-00000-of-00001.parquet")
    return DataConfig(source="audio_alpaca", path=str(tmp_path))


def test_audio_is_recognised_and_counted(tmp_path):
    settings = audio(tmp_path)
    message = (
        r"train-00000-of-00001\.parquet: audio training is not supported yet; these 3 rows are pairs of audio clips"
    )
    with pytest.raises(ValueError, match=message):
        open_source(settings)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source="auto", path=str(tmp_path)))


@pytest.mark.parametrize(("kind", "expected"), [("Audio", "audio_alpaca"), ("Image", None)])
def test_the_types_in_the_file_decide(tmp_path, kind, expected):
    features = {name: {"_type": kind} for name in ("chosen", "rejected")}
    audio(tmp_path, {"huggingface": json.dumps({"info": {"features": features}})})
    if expected:
        assert detect_source(str(tmp_path)).source == expected
        return
    with pytest.raises(ValueError, match="no source reads its columns"):
        detect_source(str(tmp_path))
    with pytest.raises(ValueError, match="does not hold audio-alpaca's columns"):
        open_source(DataConfig(source="audio_alpaca", path=str(tmp_path)))


def test_pick_style_has_five_columns_and_whole_labels(write_shard):
    # Pick-Style and Pick-Safety: the columns of Pick-a-Pic that are needed, labels as int64.
    rows = [row(number, number % 2) for number in range(4)]
    path = write_shard(rows)
    schema = pq.read_schema(path)
    assert schema.names == ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
    labels = pa.Table.from_pylist([raw | {f"label_{i}": int(raw[f"label_{i}"]) for i in (0, 1)} for raw in rows])
    assert labels.schema.field("label_0").type == pa.int64()
    pq.write_table(labels, path)
    table = open_source(DataConfig(source="auto", path=str(path)))
    assert table.report.source == "pickapic"
    assert [pair.extras["swapped"] for pair in table] == [True, False, True, False]


def test_every_source_has_a_reader_and_a_name():
    assert list(SOURCES)[-1] == "auto"
    assert {source for _, source in TEXTS.values()} | set(PARQUET) | {"canonical", "webdataset"} == set(SOURCES) - {
        "auto"
    }
