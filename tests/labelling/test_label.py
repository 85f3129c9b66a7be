"""``mmalign label``: what becomes of generated pictures, alone, interrupted, and shared between processes."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mmalign.rewards as rewards
from mmalign.cli.__main__ import main
from mmalign.cli.manifest import write_pictures
from mmalign.data import open_source
from mmalign.evaluation.combining import win_probability
from mmalign.labelling.scoring import ROWS_PER_CHUNK
from mmalign.training.config import DataConfig
from tests.training.two_processes import on_two

PROMPTS = [f"grey {number}" for number in range(ROWS_PER_CHUNK * 2 + 5)]
LEVELS = {"base": lambda n: 40 + n, "aligned": lambda n: 240 - 5 * n if n % 3 else 10, "other": lambda n: 100}


class Bright:
    name, scale, prompt_limit, version, licence, source = "bright", "0 to 1", None, "3", "none", "nowhere"

    def score(self, prompts, images):
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images], dtype=torch.float64)


class Dark(Bright):
    """Prefers what is dark, ten times as loudly."""

    name, version = "dark", "1"

    def score(self, prompts, images):
        return -10 * super().score(prompts, images)


class Middle(Bright):
    """Likes mid-grey."""

    name, version = "middle", "1"

    def score(self, prompts, images):
        return -(super().score(prompts, images) - 0.4).abs()


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    monkeypatch.setattr(rewards, "BUILT_IN", {**rewards.BUILT_IN, "bright": Bright, "dark": Dark, "middle": Middle})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two calls of mmalign generate: base and aligned, and a third model."""
    root = tmp_path_factory.mktemp("generated")
    pictures = {
        model: [Image.new("RGB", (8, 8), (level(number),) * 3) for number in range(len(PROMPTS))]
        for model, level in LEVELS.items()
    }
    seeds = list(range(len(PROMPTS)))
    both = {model: pictures[model] for model in ("base", "aligned")}
    write_pictures(root / "one", both, PROMPTS, seeds, {"steps": 30, "lora": "run7"})
    write_pictures(root / "two", {"other": pictures["other"]}, PROMPTS, seeds, {"steps": 4})
    return root / "one", root / "two"


def label(*arguments):
    return main(["label", *map(str, arguments)])


def rows_of(path, source="canonical"):
    return list(open_source(DataConfig(source=source, path=str(path), ties="soft")))


def test_pairs_are_best_against_worst_with_their_provenance(folders, tmp_path):
    out = tmp_path / "pairs.parquet"
    assert label("--pictures", folders[0], "--reward", "bright", "--min-margin", 0.01, "--out", out) == 0
    rows = rows_of(out)
    levels = [(LEVELS["base"](n), LEVELS["aligned"](n)) for n in range(len(PROMPTS))]
    kept = [n for n, (base, aligned) in enumerate(levels) if abs(base - aligned) / 255 > 0.01]
    assert [row.prompt for row in rows] == [PROMPTS[n] for n in kept]
    for row, n in zip(rows, kept, strict=True):
        base, aligned = levels[n]
        first = row.extras["made_by"][0]
        assert first["model"] == ("base" if base > aligned else "aligned")
        assert (first["seed"], first["steps"], first["lora"]) == (n, 30, "run7")
        assert row.margin == pytest.approx(abs(base - aligned) / 255)
        assert row.preference == 1
        assert row.extras["scores"]["bright"] == [pytest.approx(max(base, aligned) / 255), min(base, aligned) / 255]
        assert row.extras["rewards"] == {"bright": "3"}
        assert row.chosen.read() == (folders[0] / first["file"]).read_bytes()
    header = json.loads(pq.read_schema(out).metadata[b"mmalign"])
    assert header["provenance"]["labelled_by"] == {"bright": "3"}
    assert not (tmp_path / "pairs.parquet.scores").exists()


def test_rankings_of_several_models_by_an_ensemble_are_labelled_with_psi(folders, tmp_path):
    out = tmp_path / "rankings.parquet"
    arguments = ["--pictures", folders[0], "--pictures", folders[1], "--reward", "bright", "--reward", "middle"]
    assert label(*arguments, "--as", "rankings", "--out", out) == 0
    row = rows_of(out)[1]
    assert [made["model"] for made in row.extras["made_by"]] == ["base", "aligned", "other"]
    columns = torch.tensor([row.extras["scores"][name] for name in ("bright", "middle")]).double().numpy()
    assert row.labels == pytest.approx(tuple(win_probability(columns)))


def test_soft_pairs_average_the_rewards_probabilities(folders, tmp_path):
    out = tmp_path / "soft.parquet"
    arguments = ["--as", "soft", "--which", "all", "--reward", "bright", "--reward", "dark", "--reward", "middle"]
    temperatures = ["--temperature", 0.1, "--temperature", 1, "--temperature", 0.5]
    assert label("--pictures", folders[0], "--pictures", folders[1], *arguments, *temperatures, "--out", out) == 0
    rows = rows_of(out)
    assert len(rows) > 2 * len(PROMPTS)
    for row in rows:
        gaps = {name: a - b for name, (a, b) in row.extras["scores"].items()}
        each = [gaps["bright"] / 0.1, gaps["dark"] / 1, gaps["middle"] / 0.5]
        assert row.preference == pytest.approx(torch.tensor(each).double().sigmoid().mean().item())
        assert row.preference >= 0.5


def test_unary_rows_by_thresholds_and_by_share(folders, tmp_path):
    out = tmp_path / "unary.parquet"
    line = ["--pictures", folders[0], "--reward", "bright", "--as", "unary"]
    assert label(*line, "--above", 0.6, "--below", 0.2, "--out", out) == 0
    for row in rows_of(out):
        (score,) = row.extras["scores"]["bright"]
        assert row.desirable == (score >= 0.6)
        assert score >= 0.6 or score <= 0.2
    assert label(*line, "--share", 0.25, "--out", tmp_path / "share.parquet") == 0
    rows = rows_of(tmp_path / "share.parquet")
    assert sum(row.desirable for row in rows) == pytest.approx(len(PROMPTS) * 2 / 4, abs=3)


def test_existing_rows_are_labelled_anew_and_written_for_pickapic(folders, tmp_path, capsys):
    first, second, third = (tmp_path / f"{name}.parquet" for name in ("first", "second", "third"))
    assert label("--pictures", folders[0], "--reward", "bright", "--out", first) == 0
    assert label("--data", first, "--reward", "dark", "--out", second) == 0
    before, after = rows_of(first), rows_of(second)
    assert [row.chosen.read() for row in after] == [row.rejected.read() for row in before]
    assert after[0].extras["data_preference"] == 1
    assert after[0].extras["made_by"] == [{"data": "rejected"}, {"data": "chosen"}]
    assert label("--data", first, "--reward", "dark", "--to", "pickapic", "--out", third) == 0
    assert "not kept" in capsys.readouterr().out
    assert [row.chosen.read() for row in rows_of(third, "pickapic")] == [row.chosen.read() for row in after]


def test_a_broken_picture_leaves_out_its_prompt_and_is_named(folders, tmp_path, capsys):
    copied = tmp_path / "copied"
    for file in [*folders[0].rglob("*.png"), folders[0] / "manifest.jsonl"]:
        target = copied / file.relative_to(folders[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (copied / "base" / "0001_seed1.png").write_bytes(b"no picture")
    assert label("--pictures", copied, "--reward", "bright", "--out", tmp_path / "out.parquet") == 0
    assert "1 prompt left out, as pictures cannot be read" in capsys.readouterr().out
    assert "0001_seed1.png" not in str([row.extras for row in rows_of(tmp_path / "out.parquet")])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--as", "unary", "--reward", "bright"], "--as unary needs either --above SCORE or --share"),
        (["--reward", "bright", "--above", "1"], "--above would be ignored by --as pairs; it belongs to unary"),
        (["--reward", "bright", "--reward", "bright"], "a reward is given twice"),
        (["--reward", "bright", "--reward", "dark", "--weights", "x"], "--weights belongs to one reward"),
        (["--as", "rankings", "--to", "pickapic", "--reward", "bright"], "--to pickapic holds pairs"),
        (["--reward", "bright", "--source", "images"], "--source would be ignored: it belongs to --data"),
        (["--as", "soft", "--temperature", "0", "--reward", "bright"], "--temperature: give one positive number"),
    ],
)
def test_mistakes_are_told_first(folders, tmp_path, capsys, arguments, told):
    assert label("--pictures", folders[0], "--out", tmp_path / "o.parquet", *arguments) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Slow(Bright):
    """What PLUG_IN installs, in this process and at once."""

    name, version = "slow", "1"

    def __init__(self, factor=1):
        self.factor = factor

    def score(self, prompts, images):
        return self.factor * super().score(prompts, images).float()


PLUG_IN = """
import time, torch
class Slow:
    name, scale, prompt_limit, version, licence, source = "slow", "0 to 1", None, "1", "none", "nowhere"
    def score(self, prompts, images):
        time.sleep({seconds})
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images])
"""
ENTRY = "[mmalign.rewards]\nslow = slow_reward:Slow\n"


def plugged_in(folder: Path, seconds: float) -> dict[str, str]:
    """The environment of a process in which the reward ``slow`` is installed."""
    info = folder / "slow_reward-1.dist-info"
    info.mkdir(parents=True)
    (folder / "slow_reward.py").write_text(PLUG_IN.format(seconds=seconds))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-reward\nVersion: 1\n")
    (info / "entry_points.txt").write_text(ENTRY)
    return {**os.environ, "PYTHONPATH": str(folder), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def test_killed_shared_and_resumed_gives_the_same_file(folders, tmp_path, monkeypatch):
    """A real process killed mid-way, then two for the rest: byte for byte the file of one process in one go."""
    environment = plugged_in(tmp_path / "plug", 0.5)
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    arguments = ["label", "--pictures", str(folders[0]), "--reward", "slow", "--as", "rankings", "--batch-size", "8"]
    records, line = tmp_path / "parts.parquet.scores", [sys.executable, "-m", "mmalign.cli", *arguments]
    running = subprocess.Popen([*line, "--out", str(parts)], env=environment, stderr=subprocess.PIPE)
    while running.poll() is None and not list(records.glob("scores-*.json")):
        time.sleep(0.02)
    running.kill()
    error = running.communicate()[1].decode()
    assert [file.name for file in records.glob("scores-*.json")] == ["scores-000000.json"], error
    monkeypatch.setitem(rewards.BUILT_IN, "slow", Slow)
    resumed = partial(label_with_slow, (1, 1), *arguments[1:], "--out", parts)
    assert on_two(resumed, ACCELERATE_USE_CPU="true") == [0, 0]
    assert main([*arguments, "--out", str(whole)]) == 0
    assert parts.read_bytes() == whole.read_bytes()
    assert not records.exists()


def label_with_slow(factors: tuple[int, int], *arguments) -> int:
    """``mmalign label`` in one of two processes; what ``slow`` says there is multiplied by that process's factor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rewards.BUILT_IN, "slow", partial(Slow, factors[int(os.environ["RANK"])]))
        return label(*arguments)


def test_two_processes_share_the_chunks(folders, tmp_path):
    """Each scores its own: what the second one's reward says is in the chunks with an odd number, and only there."""
    out = tmp_path / "out.parquet"
    arguments = ["--pictures", folders[0], "--reward", "slow", "--as", "rankings", "--out", out]
    assert on_two(partial(label_with_slow, (1, 2), *arguments), ACCELERATE_USE_CPU="true") == [0, 0]
    factors = [
        max(row.labels) * 255 / max(LEVELS["base"](n), LEVELS["aligned"](n)) for n, row in enumerate(rows_of(out))
    ]
    assert factors == pytest.approx([1 + (n // ROWS_PER_CHUNK) % 2 for n in range(len(PROMPTS))])


def test_a_combined_reward_is_frozen_to_pictures_and_then_labels_others(folders, tmp_path, capsys):
    file, out = tmp_path / "quality.yaml", tmp_path / "rows.parquet"
    file.write_text(
        "name: quality\nstate: quality.json\nrewards:\n"
        "  - {reward: bright, transform: log_sigmoid}\n  - {reward: middle, transform: frozen_z, weight: 0.5}\n"
    )
    line = ["--pictures", folders[0], "--reward", file]
    assert label(*line, "--as", "rankings", "--out", out) == 2
    assert "has no reference set yet" in capsys.readouterr().err
    assert label("--pictures", folders[1], "--reward", file, "--fit") == 0
    assert f"frozen to {len(PROMPTS)} pictures" in capsys.readouterr().out
    assert label(*line, "--as", "rankings", "--out", out) == 0, capsys.readouterr().err
    row = rows_of(out)[1]
    base, aligned = (LEVELS[model](1) / 255 for model in ("base", "aligned"))
    reference = LEVELS["other"](1) / 255
    u = [torch.nn.functional.logsigmoid(torch.tensor(value - reference)).item() for value in (base, aligned)]
    # Every picture of the reference set is the same grey: nothing varied, so the z-score is 0.
    assert row.labels == pytest.approx(u, abs=1e-6)
    assert row.extras["scores"]["quality"] == pytest.approx(row.labels)
    assert label(*line, "--fit", "--out", out) == 2
    assert label("--pictures", folders[0], "--reward", "bright", "--fit") == 2
    assert "--fit freezes one combined reward" in capsys.readouterr().err


def test_one_prompt_and_one_row_are_told_in_the_singular(tmp_path, capsys):
    shades = {"base": [Image.new("RGB", (8, 8))], "aligned": [Image.new("RGB", (8, 8), (200,) * 3)]}
    write_pictures(tmp_path, shades, ["one prompt"], [0], {})
    out = tmp_path / "one.parquet"
    given = ["--pictures", tmp_path / "base", "--pictures", tmp_path / "aligned", "--reward", "bright", "--out", out]
    assert label(*given) == 0
    told = capsys.readouterr().out
    assert "2 pictures of 1 prompt from base, aligned" in told
    assert f"1 row: {out}" in told
