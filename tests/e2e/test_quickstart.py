"""The quickstart at a small size, on the shipped weights: every stage, and what a newcomer reads at the end."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmalign.playground.on_policy import PairSettings
from mmalign.quickstart import Measure, quickstart

SMALL = {
    "measure": Measure(prompts=6, seeds=2, steps=4),
    "overrides": [
        "training.steps=2",
        "training.warmup_steps=0",
        "training.checkpoint_every=2",
        "evaluation.pictures.inference_steps=2",
    ],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and printed text of a small DPO quickstart."""
    import contextlib
    import io

    out, text = tmp_path_factory.mktemp("quickstart"), io.StringIO()
    with contextlib.redirect_stdout(text):
        quickstart(method="dpo", seed=3, out=out, pairs_wanted=PairSettings(prompts=24, seed=3, steps=4), **SMALL)
    return out, text.getvalue()


def test_it_writes_pairs_weights_evaluation_and_report(finished: tuple[Path, str]) -> None:
    out, _ = finished
    run = out / "dpo_seed3"
    assert (out / "pairs_seed3.parquet").exists()
    assert (run / "aligned").is_dir()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["n_prompts"] == 6
    assert set(evaluation["attributes"]) == {"background", "count", "style", "shape", "colour", "size"}
    page = (run / "report.html").read_text()
    assert "data:image/png;base64" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_it_ends_with_the_win_rate_the_report_and_three_commands(finished: tuple[Path, str]) -> None:
    out, text = finished
    assert re.search(r"win rate \d\.\d+ \[\d\.\d+, \d\.\d+\]", text)
    assert str(out / "dpo_seed3" / "report.html") in text
    commands = [line.strip() for line in text.split("try next:")[1].splitlines() if line.strip()]
    assert len(commands) == 3


def test_the_suggested_commands_run(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.cli.__main__ import app

    _, text = finished
    commands = [shlex.split(line.strip()) for line in text.split("try next:")[1].splitlines() if line.strip()]
    train, generate = commands[1], commands[2]
    dry = CliRunner().invoke(app, [*train[1:], "--dry-run"])
    assert dry.exit_code == 0, dry.output
    made = CliRunner().invoke(app, [*generate[1:], "--steps", "2"])
    assert made.exit_code == 0, made.output


def test_pairs_are_used_again_and_runs_never_overwritten(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = (out / "pairs_seed3.parquet").stat().st_mtime_ns
    quickstart(method="mapo", seed=3, out=out, pairs_wanted=PairSettings(prompts=24, seed=3, steps=4), **SMALL)
    quickstart(method="mapo", seed=3, out=out, pairs_wanted=PairSettings(prompts=24, seed=3, steps=4), **SMALL)
    assert (out / "pairs_seed3.parquet").stat().st_mtime_ns == before
    assert (out / "mapo_seed3").is_dir()
    assert (out / "mapo_seed3-2").is_dir()
