"""GenAI-Bench's rows as they lie on the hub: pictures in structs, four kinds of votes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.data import decode, open_source, open_table
from mmalign.training.config import DataConfig

VOTES = ["leftvote", "rightvote", "tievote", "bothbad_vote"]


def cell(level):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write(folder, votes, name="image_generation/test-00000-of-00001.parquet"):
    rows = [
        {"prompt": f"p{n}", "left_model": "A", "left_image": cell(10), "right_model": "B", "right_image": cell(200),
         "vote_type": vote}
        for n, vote in enumerate(votes)
    ]  # fmt: skip
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_votes_become_pairs_and_ties(tmp_path):
    write(tmp_path, VOTES)
    table = open_source(DataConfig(source="genai_bench", path=str(tmp_path), ties="soft"))
    assert [row.preference for row in table] == [1, 1, 0.5, 0.5]
    assert [decode(row.chosen).getpixel((0, 0))[0] for row in table][:2] == [10, 200]
    assert [row.extras["swapped"] for row in table][:2] == [False, True]
    assert [row.extras["vote_type"] for row in table] == VOTES
    assert table[0].extras["left_model"] == "A"
    assert len(open_source(DataConfig(source="auto", path=str(tmp_path)))) == 2  # ties dropped


def test_another_vote_is_named_and_other_configurations_are_not_read(tmp_path):
    write(tmp_path, [*VOTES, "maybe"])
    (tmp_path / "image_edition").mkdir()
    pq.write_table(pa.table({"source_prompt": ["x"]}), tmp_path / "image_edition" / "test.parquet")
    table = open_table(DataConfig(source="genai_bench", path=str(tmp_path), ties="soft", max_corrupt=1))
    assert "vote_type='maybe' is none of leftvote, rightvote, tievote, bothbad_vote" in str(table.report)
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="lacks left_image, right_image, vote_type"):
        open_table(DataConfig(source="genai_bench", path=str(tmp_path / "other.parquet")))
