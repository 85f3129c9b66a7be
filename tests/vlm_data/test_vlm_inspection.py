"""``mmalign data inspect`` and ``convert`` on VLM files, through the command line."""

import json
from pathlib import Path

import pytest
from making_vlm import RECORDS, config, hub_image, pictures, png, said, write_json, write_parquet
from typer.testing import CliRunner

from mmalign.cli.__main__ import app
from mmalign.inspection.vlm import inspect_vlm_table, vlm_contact_sheet
from mmalign.vlm_data import VLM_SOURCES, open_source, open_table, write_vlm_canonical
from mmalign.vlm_data.vlfeedback import ASPECTS


def rows_file(folder: Path) -> Path:
    pictures(folder)
    base = {
        "images": ["0.png"],
        "prompt": [said("user", "What is it?")],
        "chosen": "A red cube.",
        "rejected": "A ball.",
    }
    rows = [
        base,
        {**base, "images": ["1.png"], "margin": 2.0},
        base,  # says what the first says
        {**base, "chosen": "A ball.", "rejected": "A red cube."},  # contradicts it
        {**base, "images": ["2.png"], "rejected": "A red cube."},  # equal
        {**base, "images": ["gone.png"]},
        {**base, "chosen": ""},
        {**base, "images": ["1.png", "2.png"], "preference": 0.5},
    ]
    return write_json(folder / "rows.jsonl", rows)


def test_what_stands_out_is_found(tmp_path: Path) -> None:
    table = open_table(config(rows_file(tmp_path), ties="soft", max_corrupt=1.0))
    found = inspect_vlm_table(table)
    assert (found.source, found.rows, found.looked_at, found.ties) == ("trl", 8, 7, 1)
    assert (found.pictures, found.distinct_pictures, found.sizes) == (7, 3, {"20x12": 7})
    assert found.pictures_per_row == {"1": 6, "2": 1}
    assert found.duplicates == [("rows.jsonl:1", "rows.jsonl:3")]
    assert found.contradictions == [("rows.jsonl:1", "rows.jsonl:4")]
    assert found.equal_responses == ["rows.jsonl:5"]
    assert [name for name, _ in found.broken] == ["rows.jsonl:6"]
    assert [name for name, _ in found.source_broken] == ["rows.jsonl:7"]
    assert found.words["chosen"]["median"] == 3
    assert found.chosen_longer == pytest.approx(5 / 7)
    sheet = vlm_contact_sheet(table)
    assert sheet is not None
    assert sheet.width > 128


def test_the_command_line_inspects_and_converts_there_and_back(tmp_path: Path) -> None:
    path, run = rows_file(tmp_path), CliRunner()
    done = run.invoke(app, ["data", "inspect", str(path), "--out", str(tmp_path / "seen")], catch_exceptions=False)
    assert done.exit_code == 0
    for words in (
        "Recognised as trl",
        "1 row whose responses are equal",
        "rows.jsonl:7: chosen='' must be",
        "gone.png",
    ):
        assert words in done.output.replace("\n", " ")
    kept = json.loads((tmp_path / "seen" / "inspection.json").read_text())
    assert kept["equal_responses"] == ["rows.jsonl:5"]
    assert (tmp_path / "seen" / "contact_sheet.png").stat().st_size > 1000
    own = tmp_path / "own.parquet"
    convert = ["data", "convert", str(path), "--max-corrupt", "0.5", "--out"]
    assert run.invoke(app, [*convert, str(own)], catch_exceptions=False).exit_code == 0
    original = open_source(config(path, ties="soft", max_corrupt=1.0))
    assert [row.chosen for row in open_source(config(own, ties="soft"))] == [row.chosen for row in original]
    for form in ("llava", "llama_factory", "ms_swift", "trl"):
        out = tmp_path / ("out.parquet" if form == "trl" else form)
        done = run.invoke(app, ["data", "convert", str(own), "--to", form, "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0
        file = next(f for f in [out, *out.glob("rows.json*")] if f.is_file())
        back = open_source(config(file))
        assert len(back) == 5  # without the tie
        assert (back.report.source, back[1].images[0].read(), back[1].margin) == (form, png(1), 2.0)
    info = json.loads((tmp_path / "llama_factory" / "dataset_info.json").read_text())["rows"]
    assert (info["ranking"], info["columns"]["images"]) == (True, "images")


def every_format(folder: Path) -> dict[str, Path]:
    """A small file in every format of ``VLM_SOURCES``."""
    pictures(folder)
    (folder / "clip.mp4").write_bytes(b"video")
    files = {form: write_json(folder / name, [record]) for form, (name, record) in RECORDS.items()}
    pair = {"chosen": "A cube.", "rejected": "A ball."}
    files["rlaif_v"] = write_parquet(
        folder / "rlaif.parquet", [{"image": hub_image(0), "question": "What is it?", **pair}]
    )
    text = json.dumps({"question": "What is it?", **pair})
    files["rlhf_v"] = write_parquet(folder / "rlhf.parquet", [{"image": hub_image(0), "text": text}])
    ratings = [{aspect: {"Rating": str(n), "Rationale": ""} for aspect in ASPECTS} for n in (5, 1)]
    completions = [
        {"response": answer, "model": "m", "annotations": rating}
        for answer, rating in zip(pair.values(), ratings, strict=True)
    ]
    rated = {"prompt": "What is it?", "img_path": "0.png", "completions": completions}
    files["vlfeedback"] = write_json(folder / "vlfeedback.jsonl", [rated])
    write_vlm_canonical(open_source(config(files["mm_rlhf"])), folder / "own.parquet")
    files["vlm_canonical"] = folder / "own.parquet"
    return files


def test_every_format_is_inspected_by_the_command(tmp_path: Path) -> None:
    files = every_format(tmp_path)
    assert set(files) == set(VLM_SOURCES) - {"auto"}
    for form, path in files.items():
        out = tmp_path / "seen" / form
        done = CliRunner().invoke(app, ["data", "inspect", str(path), "--out", str(out)], catch_exceptions=False)
        assert done.exit_code == 0, form
        found = json.loads((out / "inspection.json").read_text())
        assert (found["source"], found["looked_at"], found["broken"]) == (form, 1, []), form
        assert found["videos"] == (1 if form == "video_salmonn" else 0)
        assert f"Recognised as {form}" in " ".join(done.output.split())


def test_pairs_are_balanced_by_the_command(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What?", "image": "0.png", "chosen": "a " * chosen, "rejected": "b " * rejected}
        for chosen, rejected in ((10, 10), (9, 10), (2, 30))
    ]
    pictures(tmp_path)
    path, out = write_json(tmp_path / "rows.jsonl", rows), tmp_path / "out.parquet"
    done = CliRunner().invoke(app, ["data", "balance", str(path), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "2 of 3 rows left out (length ratio 0)" in done.output.replace("\n", " ")
    assert len(open_source(config(out))) == 1
    assert CliRunner().invoke(app, ["data", "balance", str(path), "--out", str(out)]).exit_code != 0  # not overwritten


def test_flags_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = str(write_json(tmp_path / RECORDS["trl"][0], [RECORDS["trl"][1]]))
    for flags in (
        ["inspect", path, "--near", "2"],
        ["convert", path, "--as", "pairs", "--out", str(tmp_path / "a.parquet")],
    ):
        with pytest.raises(ValueError, match="no meaning for trl"):
            CliRunner().invoke(app, ["data", *flags], catch_exceptions=False)
    other = write_json(tmp_path / "b.jsonl", [{"prompt": "x", "chosen": "a.png", "rejected": "b.png"}])
    with pytest.raises(ValueError, match="is for rows of vision-language models"):
        CliRunner().invoke(
            app, ["data", "convert", str(other), "--to", "llava", "--out", str(tmp_path / "c")], catch_exceptions=False
        )
    with pytest.raises(ValueError, match="are written as canonical, trl, llava, llama_factory, ms_swift"):
        CliRunner().invoke(
            app, ["data", "convert", path, "--to", "images", "--out", str(tmp_path / "d")], catch_exceptions=False
        )
