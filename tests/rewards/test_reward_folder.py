"""``mmalign score``: folders of pictures, broken ones, several rewards at once, and going on after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from mmalign.cli.__main__ import main
from mmalign.playground.captions import caption
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene
from mmalign.rewards import scoring
from mmalign.rewards.prompt_files import Scored, read_scored
from mmalign.rewards.scoring import score_folder
from reward_models.aesthetic import HEAD_FILE, linear_head
from reward_models.clip_towers import ClipTowers
from tests.rewards.tiny_checkpoints import save_clip, state_hashes, tiny_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Five playground pictures, right for every second caption, a broken one, and a .jsonl that tells the captions."""
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number in range(6):
        scene = sample_scene(np.random.default_rng(number))
        other = sample_scene(np.random.default_rng(number + 50))
        file = images / f"{number}.png"
        Image.fromarray(render(scene if number % 2 == 0 else other)).save(file)
        rows.append({"image": file.name, "prompt": caption(scene)})
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:80])
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return main(["score", *map(str, arguments)])


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_oracle_scores_a_folder_and_names_what_is_broken(folder, capsys):
    out = folder / "scores.jsonl"
    arguments = ["--reward", "oracle", "--images", folder / "images", "--prompts", folder / "prompts.jsonl"]
    assert run(*arguments, "--out", out, "--batch-size", 2) == 0
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [f"{number}.png" for number in range(6)]
    assert [row["oracle"] for row in rows][::2] == [1.0, 1.0, 1.0]
    assert rows[1]["oracle"] < 1
    assert rows[3]["oracle"] is None
    assert rows[3]["error"]
    captured = capsys.readouterr()
    assert "1 pictures could not be read" in captured.err
    assert "3.png" in captured.err
    assert "oracle: mean" in captured.out
    info = json.loads((folder / "scores.jsonl.info.json").read_text())
    assert [each["image"] for each in info["broken"]] == ["3.png"]
    assert info["rewards"]["oracle"]["scale"] == "share of correct attributes, 0 to 1"
    assert sorted(path.name for path in folder.iterdir()) == [
        "images",
        "prompts.jsonl",
        "scores.jsonl",
        "scores.jsonl.info.json",
    ]
    assert run(*arguments, "--out", out) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert run(*arguments, "--out", folder / "scores.parquet") == 0
    table = pyarrow.parquet.read_table(folder / "scores.parquet").to_pylist()
    assert table == rows


class Brightness:
    name, scale, prompt_limit, version = "brightness", "0 to 255", None, "1"
    licence, source = "Apache-2.0", "no weights"

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = 0, fail_at

    def score(self, prompts, images):
        self.seen += len(images)
        if self.fail_at is not None and self.seen >= self.fail_at:
            raise KeyboardInterrupt
        return torch.tensor([float(np.asarray(image).mean()) for image in images])


def test_a_killed_job_goes_on_and_ends_with_the_same_file(folder):
    images, out = folder / "images", folder / "scores.jsonl"
    pictures = read_scored(images, folder / "prompts.jsonl")
    score_folder([Brightness()], images, pictures, folder / "whole.jsonl", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        score_folder([Brightness(fail_at=3)], images, pictures, out, batch_size=2)
    assert not out.exists()
    journal = folder / "scores.jsonl.unfinished"
    with journal.open("a") as stream:
        stream.write('{"image": "2.png", "pro')  # killed in the middle of a write
    again, calls = Brightness(), []
    result = score_folder(
        [again], images, pictures, out, batch_size=2, progress=lambda done, total: calls.append((done, total))
    )
    assert result.resumed == 2
    assert again.seen == 3, "3.png is broken, 0 and 1 were done"
    assert calls == [(2, 6), (4, 6), (6, 6)]
    assert out.read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert not journal.exists()


def test_a_journal_of_another_job_is_not_continued(folder):
    images, out = folder / "images", folder / "scores.jsonl"
    pictures = read_scored(images, folder / "prompts.jsonl")
    with pytest.raises(KeyboardInterrupt):
        score_folder([Brightness(fail_at=3)], images, pictures, out, batch_size=2)
    with pytest.raises(ValueError, match=r"beginning of another job \(pictures differ\)"):
        score_folder([Brightness()], images, pictures[:-1], out, batch_size=2)
    with pytest.raises(ValueError, match=r"beginning of another job \(settings differ\)"):
        score_folder([Brightness()], images, pictures, out, settings={"dtype": "bfloat16"})
    other = Brightness()
    other.version = "2"
    with pytest.raises(ValueError, match=r"beginning of another job \(rewards differ\)"):
        score_folder([other], images, pictures, out)


def test_a_score_that_is_no_number_is_an_error(folder):
    class Undefined(Brightness):
        def score(self, prompts, images):
            return torch.tensor([float("nan")] * len(images))

    with pytest.raises(RuntimeError, match=r"reward 'brightness' gives nan for 0.png and 'a scene'"):
        score_folder([Undefined()], folder / "images", [Scored("0.png", "a scene")], folder / "out.jsonl")


def test_where_prompts_come_from(folder, tmp_path):
    images = folder / "images"
    text = tmp_path / "prompts.txt"
    text.write_text("one for all\n")
    assert {each.prompt for each in read_scored(images, text)} == {"one for all"}
    text.write_text("".join(f"prompt {number}\n" for number in range(6)))
    assert read_scored(images, text)[4] == Scored("4.png", "prompt 4")
    text.write_text("a\nb\n")
    with pytest.raises(ValueError, match="has 2 prompts for 6 pictures"):
        read_scored(images, text)
    with pytest.raises(ValueError, match=r"has no manifest.jsonl that tells the prompts"):
        read_scored(images, None)
    manifest = folder / "manifest.jsonl"
    manifest.write_text(
        json.dumps({"file": "images/1.png", "prompt": "x", "seed": 0})
        + "\n"
        + json.dumps({"file": "elsewhere/1.png", "prompt": "y"})
    )
    assert read_scored(images, None) == [Scored("1.png", "x")]
    (folder / "wrong.jsonl").write_text('{"image": "9.png", "prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"wrong.jsonl, line 1: there is no picture .*9.png"):
        read_scored(images, folder / "wrong.jsonl")
    (folder / "wrong.jsonl").write_text('{"picture": "1.png", "prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"line 1: needs a prompt and one of image, file, path, got"):
        read_scored(images, folder / "wrong.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "oracle", "--reward", "oracle"], "--reward oracle is given twice"),
        (["--reward", "oracle", "--weights", "x"], "--weights takes REWARD=PATH"),
        (["--reward", "oracle", "--weights", "hpsv2=x"], "--weights hpsv2=x would be ignored"),
        (["--reward", "nobody"], "no reward model 'nobody'; installed: "),
        (["--reward", "pickscore", "--weights", "pickscore=nowhere"], "weights=nowhere does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(folder, capsys, arguments, message):
    places = ["--images", folder / "images", "--prompts", folder / "prompts.jsonl", "--out", folder / "scores.jsonl"]
    before = sorted(folder.iterdir())
    assert run(*arguments, *places) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_two_rewards_of_one_backbone_decode_and_encode_each_picture_once(folder, tmp_path, monkeypatch, capsys):
    root = tmp_path / "weights"
    save_clip(tiny_clip(0), root / "openai--clip-vit-large-patch14")
    head = root / "christophschuhmann--improved-aesthetic-predictor"
    head.mkdir()
    torch.save(torch.nn.ModuleDict({"layers": linear_head(8)}).state_dict(), head / HEAD_FILE)
    state_hashes(head)
    monkeypatch.setenv("MMALIGN_REWARDS", str(root))
    opened, encoded = [], []
    decode, encode = scoring.decode, ClipTowers.image_features
    monkeypatch.setattr(scoring, "decode", lambda image: opened.append(image.origin) or decode(image))
    monkeypatch.setattr(
        ClipTowers, "image_features", lambda towers, pixels: encoded.append(len(pixels)) or encode(towers, pixels)
    )
    places = ["--images", folder / "images", "--prompts", folder / "prompts.jsonl", "--device", "cpu"]
    both, alone = folder / "both.jsonl", folder / "alone.jsonl"
    assert run("--reward", "aesthetic", "--reward", "clip-cosine-l14", *places, "--out", both) == 0
    assert sorted(opened) == [f"{number}.png" for number in range(6)]
    assert sum(encoded) == 5  # one of the six is broken
    assert run("--reward", "aesthetic", *places, "--out", alone) == 0
    assert [row["aesthetic"] for row in rows_of(both)] == [row["aesthetic"] for row in rows_of(alone)]


def test_a_real_process_with_checkpoints_in_the_folder_of_rewards(folder, tmp_path):
    """A tiny PickScore and CLIPScore beside the oracle, in one pass; a SIGKILLed journal would look like this one."""
    save_clip(tiny_clip(0), tmp_path / "weights" / "yuvalkirstain--PickScore_v1")
    save_clip(tiny_clip(1), tmp_path / "weights" / "openai--clip-vit-base-patch32")
    out = folder / "scores.jsonl"
    command = ["score", "--reward", "oracle", "--reward", "pickscore", "--reward", "clipscore"]
    command += ["--images", folder / "images", "--prompts", folder / "prompts.jsonl", "--out", out, "--device", "cpu"]
    environment = {**os.environ, "MMALIGN_REWARDS": str(tmp_path / "weights"), "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "mmalign.cli", *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pickscore: mean" in done.stdout
    rows = rows_of(out)
    assert len({row["pickscore"] for row in rows}) == 6
    assert rows[3]["pickscore"] is rows[3]["clipscore"] is None
    info = json.loads((folder / "scores.jsonl.info.json").read_text())
    assert info["rewards"]["pickscore"]["source"] == "yuvalkirstain/PickScore_v1"
    assert info["prompts_cut"] == {"oracle": 0, "pickscore": 0, "clipscore": 0}
