"""``mmalign generate``: which pictures are asked for, and what lies in the folder afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.cli.manifest import read_pictures
from tests.cli.conftest import FakeModels, Run


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_base_and_aligned_share_prompts_and_seeds(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = run("generate", "--base", "tiny", "--aligned", lora, "--out", out)
    assert line.code == 2
    line = run(
        *("generate", "--base", "tiny", "--aligned", lora, "--prompt", "a", "--prompt", "b"),
        *("--seeds", "0,7", "--steps", "3", "--guidance", "2.5", "--batch-size", "5", "--lora-scale", "0.5"),
        *("--dtype", "bfloat16", "--device", "cpu", "--out", out),
    )
    assert line.code == 0, line.err
    common = {
        "prompts": ["a", "a", "b", "b"],
        "seeds": [0, 7, 0, 7],
        "steps": 3,
        "guidance_scale": 2.5,
        "batch_size": 5,
    }
    assert models.sampled == [{"folder": None, **common}, {"folder": lora, **common}]
    assert [pipe["lora_scale"] for pipe in models.loaded] == [1.0, 0.5]
    assert {(pipe["base"], pipe["dtype"], pipe["device"]) for pipe in models.loaded} == {("tiny", "bfloat16", "cpu")}
    rows = manifest(out)
    assert len(rows) == 8
    assert rows[5] == {
        "file": "aligned/0000_seed7.png",
        "model": "aligned",
        "prompt": "a",
        "seed": 7,
        "base": "tiny",
        "aligned": str(lora),
        "steps": 3,
        "guidance": 2.5,
        "batch_size": 5,
        "lora_scale": 0.5,
        "dtype": "bfloat16",
        "device": "cpu",
    }
    assert Image.open(out / rows[5]["file"]).getpixel((0, 0)) == (200, 7, 0)
    assert Image.open(out / "grid.png").width > Image.open(out / "grid.png").height


def test_the_grid_has_base_beside_aligned_for_every_seed(
    run: Run, models: FakeModels, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def grid(rows: Any, *, row_labels: Any, column_labels: Any) -> Image.Image:
        seen.update(rows=rows, row_labels=row_labels, column_labels=column_labels)
        return rows[0][0]

    monkeypatch.setattr("mmalign.pictures.grid", grid)
    arguments = ("--base", "tiny", "--aligned", lora, "--prompt", "a", "--prompt", "b", "--seeds", "3,4")
    assert run("generate", *arguments, "--out", tmp_path / "out").code == 0
    assert seen["row_labels"] == ["a", "b"]
    assert seen["column_labels"] == ["base, seed 3", "aligned, seed 3", "base, seed 4", "aligned, seed 4"]
    expected = [(0, 3, 0), (200, 3, 0), (0, 4, 0), (200, 4, 0)]
    assert [[picture.getpixel((0, 0)) for picture in row] for row in seen["rows"]] == [expected, expected]


def test_the_base_alone(run: Run, models: FakeModels, tmp_path: Path) -> None:
    assert run("generate", "--base", "tiny", "--prompt", "a", "--out", tmp_path / "out").code == 0
    assert [call["folder"] for call in models.sampled] == [None]
    assert [row["file"] for row in manifest(tmp_path / "out")] == ["base/0000_seed0.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", "a red fox\n\n a blue bird \n"),
        ("p.jsonl", '{"prompt": "a red fox"}\n\n{"prompt": "a blue bird"}'),
    ],
)
def test_prompts_from_a_file(run: Run, models: FakeModels, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert run("generate", "--base", "tiny", "--prompts", tmp_path / name, "--out", tmp_path / "out").code == 0
    assert models.sampled[0]["prompts"] == ["a red fox", "a blue bird"]


@pytest.mark.parametrize("nested", [True, False])
def test_a_runs_folder_or_the_weights_in_it(
    run: Run, models: FakeModels, tmp_path: Path, lora: Path, nested: bool
) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    if nested:
        lora.rename(folder / "aligned")
    else:
        (folder / "model_index.json").touch()
    assert run("generate", "--base", "tiny", "--aligned", folder, "--prompt", "a", "--out", tmp_path / "out").code == 0
    assert models.sampled[1]["folder"] == (folder / "aligned" if nested else folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--base", "tiny"], "--prompts FILE or with --prompt"),
        (["--base", "tiny", "--prompt", " "], "there are no prompts"),
        (["--base", "tiny", "--prompt", "a", "--prompt", "a"], "given twice: 'a'"),
        (["--base", "tiny", "--prompt", "a", "--seeds", "0,x"], "whole numbers separated by commas"),
        (["--base", "tiny", "--prompt", "a", "--seeds", "3,3"], "names a seed twice"),
        (["--base", "tiny", "--prompt", "a", "--lora-scale", "0.5"], "--lora-scale would be ignored"),
        (["--base", "tiny", "--prompt", "a", "--aligned", "nowhere"], "nowhere is not a folder"),
        (["--base", "tiny", "--prompt", "a", "--aligned", "."], "has no weights"),
        (["--base", "big", "--prompt", "a"], "there is no model 'big'"),
        (["--base", "tiny", "--prompts", "nowhere.txt"], "does not exist"),
        (["--base", "tiny", "--prompts", "bad.jsonl"], "line 2: expected"),
        (["--base", "tiny", "--prompt", "a", "--steps", "0"], "--steps"),
        (["--prompt", "a"], "--base"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    run: Run, models: FakeModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    line = run("generate", *arguments, "--out", "out")
    assert line.code == 2
    assert message in line.err
    assert "Traceback" not in line.err
    assert not models.loaded


def test_pictures_never_mix_with_older_ones(run: Run, models: FakeModels, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("generate", "--base", "tiny", "--prompt", "a", "--out", out)
    assert run(*arguments).code == 0
    line = run(*arguments)
    assert line.code == 2
    assert "is not empty" in line.err
    assert len(models.loaded) == 1


def test_a_moved_folder_of_pictures_is_still_found(run: Run, models: FakeModels, lora: Path, tmp_path: Path) -> None:
    arguments = ("--base", "tiny", "--aligned", lora, "--prompt", "a", "--seeds", "1,2", "--out", tmp_path / "out")
    assert run("generate", *arguments).code == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert read_pictures(moved / "base") == {("a", seed): moved / f"base/0000_seed{seed}.png" for seed in (1, 2)}
    with pytest.raises(ValueError, match=r"two pictures of seed 1.*give OUT/base or OUT/aligned"):
        read_pictures(moved)
    (moved / "base" / "0000_seed1.png").unlink()
    with pytest.raises(ValueError, match=r"line 1: .* is missing"):
        read_pictures(moved / "base")
    with pytest.raises(ValueError, match=r"has no manifest\.jsonl"):
        read_pictures(lora)
