"""Generate and evaluate once with real pipelines: the other tests replace what these two call."""

import json
from pathlib import Path

from mmalign.playground.scene import held_out_prompts
from tests.cli.conftest import Run
from tests.tiny_models import tiny_sdxl


def test_generate_then_evaluate(run: Run, tmp_path: Path) -> None:
    tiny_sdxl(tmp_path / "base", seed=0)
    tiny_sdxl(tmp_path / "run" / "aligned", seed=1)
    first, second = held_out_prompts("single", 2)
    out = tmp_path / "pictures"
    line = run(
        *(
            "generate",
            "--base",
            tmp_path / "base",
            "--aligned",
            tmp_path / "run",
            "--prompt",
            first,
            "--prompt",
            second,
        ),
        *("--steps", "2", "--device", "cpu", "--out", out),
    )
    assert line.code == 0, line.err
    pictures = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.glob("*/*.png")}
    assert len(pictures) == 4
    assert pictures["base/0000_seed0.png"] != pictures["aligned/0000_seed0.png"]

    line = run(
        *("evaluate", "images", "--base-images", out / "base", "--aligned-images", out / "aligned"),
        *("--out", tmp_path / "evaluation"),
    )
    assert line.code == 0, line.err
    assert "win rate " in line.out
    measured = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert (measured["scorer"], measured["n_prompts"]) == ("oracle", 2)

    line = run(
        *("evaluate", "images", "--base", tmp_path / "base", "--aligned", tmp_path / "run", "--held-out", "2"),
        *("--steps", "2", "--device", "cpu", "--out", tmp_path / "sampled"),
    )
    assert line.code == 0, line.err
    assert len(list((tmp_path / "sampled").glob("*/*.png"))) == 4
