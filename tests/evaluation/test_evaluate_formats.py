"""``mmalign evaluate reward`` on the published test formats of four benchmarks, by rules counted by hand."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.cli.__main__ import main


def grey(level):
    """A picture whose brightness is level / 255, as PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """images/10.png, images/20.png ...: named by their brightness."""
    (tmp_path / "images").mkdir()
    for level in range(10, 100, 10):
        (tmp_path / "images" / f"{level}.png").write_bytes(grey(level))
    return tmp_path


def evaluate(data, out, *arguments):
    """rule -> (value, pairs), and everything that was found."""
    line = ["evaluate", "reward", "--reward", "brightness", "--data", data, "--out", out, *arguments]
    assert main([str(argument) for argument in line]) == 0
    found = json.loads((out / "results.json").read_text())
    assert (out / "report.html").is_file()
    return {one["rule"]: (one["value"], one["n_pairs"]) for one in found["accuracies"]}, found


def files(*levels):
    return [f"{level}.png" for level in levels]


def test_hpdv2_test_json(pictures):
    """Rank 1 is best. Prompt a: one of three pairs inverted; b: both tied by people, which counts as right."""
    items = [
        {"prompt": "a", "image_path": files(30, 20, 40), "rank": [1, 2, 3], "raw_annotations": []},
        {"prompt": "b", "image_path": files(10, 50), "rank": [1, 1], "raw_annotations": []},
    ]
    (pictures / "test.json").write_text(json.dumps(items))
    rules, found = evaluate(pictures / "test.json", pictures / "out", "--images", pictures / "images")
    assert "hpdv2" in found["notes"][0]
    assert rules["hpdv2"] == (pytest.approx((1 / 3 + 1) / 2), 4)
    assert rules["imagereward"] == (pytest.approx(1 / 3), 3)
    assert found["ranking"]["tau_b"]["value"] == pytest.approx(-1 / 3)


def test_imagereward_test_json(pictures):
    """Micro over pairs that people decided; hpsv2_imagereward takes the mean over prompts of the same pairs."""
    items = [
        {"id": "1", "prompt": "a", "generations": files(90, 50, 10), "ranking": [1, 2, 3]},
        {"id": "2", "prompt": "b", "generations": files(20, 40, 60), "ranking": [1, 2, 2]},
    ]
    (pictures / "test.json").write_text(json.dumps(items))
    rules, _ = evaluate(pictures / "test.json", pictures / "out", "--images", pictures / "images")
    assert rules["imagereward"] == (pytest.approx(3 / 5), 5)
    assert rules["hpsv2_imagereward"] == (pytest.approx((1 + 0) / 2), 5)


def test_pickapic_parquet_with_a_threshold_from_validation(pictures):
    """Ties of people count one half unless the model ties, too; the threshold is chosen on other rows."""

    def write(name, rows):
        columns = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
        table = [dict(zip(columns, (text, grey(a), grey(b), p, 1 - p), strict=True)) for text, a, b, p in rows]
        pq.write_table(pa.Table.from_pylist(table), pictures / name)
        return pictures / name

    test = write("test.parquet", [("a", 90, 10, 1.0), ("b", 90, 10, 0.0), ("c", 50, 50, 0.5), ("d", 20, 60, 0.5)])
    validation = write("validation.parquet", [("e", 30, 10, 1.0), ("f", 10, 70, 0.0)])
    rules, found = evaluate(test, pictures / "out", "--validation", validation)
    assert any("threshold of rule pickapic is 0, chosen on 2 validation rows" in note for note in found["notes"])
    assert rules["pickapic"] == (pytest.approx((1 + 0 + 1 + 0.5) / 4), 4)
    assert rules["mmalign"] == (pytest.approx(1 / 2), 2)


def test_genai_bench_parquet(pictures):
    """Votes left, right, tie and bothbad; without and with ties in the denominator."""
    votes = [
        ("leftvote", 80, 20),
        ("rightvote", 80, 20),
        ("leftvote", 70, 60),
        ("tievote", 30, 10),
        ("bothbad_vote", 10, 20),
    ]
    rows = [
        {"prompt": f"p{number}", "left_model": "A", "right_model": "B", "vote_type": vote,
         "left_image": {"bytes": grey(left), "path": None}, "right_image": {"bytes": grey(right), "path": None}}
        for number, (vote, left, right) in enumerate(votes)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), pictures / "test.parquet")
    rules, found = evaluate(pictures / "test.parquet", pictures / "out")
    assert rules["genai_bench"] == (pytest.approx(2 / 3), 3)
    assert rules["genai_bench_with_ties"] == (pytest.approx(2 / 5), 5)
    assert found["calibration"]["pairs"] == 5
