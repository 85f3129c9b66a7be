"""``mmalign evaluate reward`` on playground pairs whose label noise is known, from the command line to the report."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmalign.cli.__main__ import main
from mmalign.data import open_table
from mmalign.labelling.score_file import ScoreFile
from mmalign.playground.captions import caption
from mmalign.playground.pairs import make_pairs, write_pickapic
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene
from mmalign.training.config import DataConfig

FLIPPED, ROWS = 6, 24


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Right against wrong pictures of 24 captions, a quarter of the labels exchanged."""
    rng = np.random.default_rng(0)
    scenes = {caption(scene): scene for scene in (sample_scene(rng, "single") for _ in range(200))}
    items = list(scenes.items())[: ROWS + 1]
    groups = [
        (text, [Image.fromarray(render(one)) for one in (scene, items[(index + 1) % len(items)][1])])
        for index, (text, scene) in enumerate(items)
    ]
    rows = make_pairs(groups, flip_rate=FLIPPED / ROWS, seed=3)[:ROWS]
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    write_pickapic(rows, path)
    wrong = sum(row["label_0"] != row["gold_label_0"] for row in rows)
    return path, wrong / len(rows), len(rows)


def test_one_command_gives_results_table_and_report(pairs, tmp_path):
    path, wrong, rows = pairs
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmalign.cli", "evaluate", "reward", "--reward", "oracle", "--data", str(path)]
    done = subprocess.run(
        [*command, "--out", str(out), "--threshold", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "results.json").read_text())
    accuracies = {one["rule"]: one for one in found["accuracies"]}
    # The oracle is right about every picture, so it disagrees exactly where a label was exchanged.
    assert accuracies["imagereward"]["value"] == pytest.approx(1 - wrong)
    assert accuracies["pickapic"]["value"] == pytest.approx(1 - wrong)
    assert accuracies["imagereward"]["n_pairs"] == found["n_groups"] == rows
    assert accuracies["imagereward"]["low"] < 1 - wrong < accuracies["imagereward"]["high"]
    assert {probe["name"] for probe in found["probes"]} == {"saturation", "contrast", "sharpness", "brightness"}
    assert "accuracy 0." in done.stdout
    assert "imagereward" in (out / "table.txt").read_text()
    page = (out / "report.html").read_text()
    assert "Reliability: As given" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert page.count("data:image/png;base64,") == min(6, round(wrong * rows))


def test_scores_are_kept_and_an_interrupted_scoring_goes_on(pairs, tmp_path, monkeypatch, capsys):
    path, _, _ = pairs
    out = tmp_path / "out"
    line = ["evaluate", "reward", "--reward", "oracle", "--data", str(path), "--out", str(out)]
    assert main(line) == 0
    whole = (out / "results.json").read_text()
    (out / "scores" / "scores-000001.json").unlink()
    asked = []
    from mmalign.rewards import OracleReward

    original = OracleReward.score
    monkeypatch.setattr(OracleReward, "score", lambda self, p, i: asked.extend(p) or original(self, p, i))
    assert main(line) == 0
    assert len(asked) == 2 * (ROWS - 16)  # only the second chunk
    assert (out / "results.json").read_text() == whole
    assert main([*line, "--max-rows", "5"]) == 2
    assert "holds scores of other pictures or other reward models" in capsys.readouterr().err


def test_a_score_file_is_judged_like_a_model(tmp_path, capsys):
    rows, scores = [], []
    for index in range(6):
        for side, value in (("good", 0.5 + index), ("bad", 0.2)):
            Image.new("RGB", (8, 8), (index * 20, 0, 0)).save(tmp_path / f"{side}{index}.png")
            scores.append({"image": f"{side}{index}.png", "prompt": f"p{index}", "mine": value, "error": None})
        rows.append({"prompt": f"p{index}", "chosen": f"good{index}.png", "rejected": f"bad{index}.png"})
    scores[1]["mine"] = 9.0  # wrong about the first
    for name, lines in (("rows.jsonl", rows), ("scores.jsonl", scores)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = ["evaluate", "reward", "--scores", tmp_path / "scores.jsonl", "--data", tmp_path / "rows.jsonl"]
    assert main([*map(str, line), "--out", str(tmp_path / "out"), "--rule", "hpsv3"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["reward"] == "mine"
    assert [(one["rule"], one["value"]) for one in found["accuracies"]] == [("hpsv3", pytest.approx(5 / 6))]
    table = open_table(DataConfig(source="auto", path=str(tmp_path / "rows.jsonl")))
    (tmp_path / "less.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores[2:]))
    with pytest.raises(ValueError, match=r"less.jsonl has no score for the prompt 'p0' and the picture .*good0.png"):
        ScoreFile.read(tmp_path / "less.jsonl").scored(table)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--threshold", "0.1"], "give --reward NAME or --scores FILE"),
        (["--reward", "oracle", "--rule", "micro"], "there is no rule 'micro'"),
        (["--reward", "oracle", "--rule", "hpdv2", "--threshold", "0.1"], "--threshold would be ignored"),
        (["--reward", "oracle", "--rule", "pickapic"], "--rule pickapic needs --validation DATA, or --threshold"),
        (["--reward", "oracel"], "no reward model 'oracel'"),
    ],
)
def test_mistakes_are_told_before_any_work(pairs, tmp_path, capsys, arguments, told):
    assert main(["evaluate", "reward", "--data", str(pairs[0]), "--out", str(tmp_path / "o"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_mmalign_score_writes_is_read(pairs, tmp_path, capsys):
    """Pictures scored in their folder, judged by a table beside it: the same number as scoring while judging."""
    data = tmp_path / "data"
    assert main(["data", "convert", str(pairs[0]), "--to", "images", "--out", str(data)]) == 0
    rows = [json.loads(line) for line in (data / "rows.jsonl").read_text().splitlines()]
    prompts = [
        {"image": row[side], "prompt": row["prompt"]}
        for row in rows
        for side in ("chosen", "rejected", "image_0", "image_1")
        if side in row
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    scores, table = tmp_path / "scores.parquet", str(data / "rows.jsonl")
    line = ["score", "--reward", "oracle", "--images", str(data), "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main([*line, "--out", str(scores)]) == 0, capsys.readouterr().err
    line = ["evaluate", "reward", "--data", table, "--out"]
    assert main([*line, str(tmp_path / "a"), "--scores", str(scores)]) == 0, capsys.readouterr().err
    assert main([*line, str(tmp_path / "b"), "--reward", "oracle"]) == 0
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert a["accuracies"] == b["accuracies"]
    assert (a["reward"], a["version"], a["scale"]) == (b["reward"], b["version"], b["scale"])
    assert main([*line, str(tmp_path / "c"), "--scores", str(scores), "--reward", "clipscore"]) == 2
    assert "has no scores of 'clipscore'; it has oracle" in capsys.readouterr().err
