"""``mmalign train``: what reaches the trainer, and what is refused before it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.cli.conftest import FakeModels, Run

RECIPE = {
    "model": {"name": "tiny"},
    "data": {"source": "pickapic", "path": "pairs.parquet"},
    "objective": [{"loss": "dpo", "beta": 2000}],
    "training": {"steps": 10},
    "output": "out",
}


@pytest.fixture
def calls(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    models: FakeModels,
    replace_module: Callable[[str, Any], None],
) -> list[dict[str, Any]]:
    """A folder with a valid recipe, and the calls that reach the trainer."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.parquet").touch()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    seen: list[dict[str, Any]] = []

    def train(config: Any, *, resume: bool, dry_run: bool, command: str) -> Any:
        seen.append({"config": config, "resume": resume, "dry_run": dry_run, "command": command})
        if config.training.seed == 13:
            raise RuntimeError("the loss is not finite at step 3 (samples a, b)")
        return SimpleNamespace(
            folder=Path("out"), report=Path("out/report.html"), stopped_early=config.training.seed == 1
        )

    replace_module("mmalign.training.run", train)
    return seen


def test_recipe_overrides_and_command_reach_the_trainer(run: Run, calls: list[dict[str, Any]]) -> None:
    line = run("train", "recipe.yaml", "training.steps=3", "objective.0.beta=5")
    assert (line.code, line.err) == (0, "")
    (call,) = calls
    assert call["config"].training.steps == 3
    assert call["config"].objective == [{"loss": "dpo", "beta": 5}]
    assert call["command"] == "mmalign train recipe.yaml training.steps=3 objective.0.beta=5"
    assert (call["resume"], call["dry_run"]) == (False, False)
    assert line.out == "finished: out\nreport: out/report.html\n"


def test_a_run_that_stopped_early_says_so(run: Run, calls: list[dict[str, Any]]) -> None:
    assert "stopped early: out" in run("train", "recipe.yaml", "training.seed=1").out


def test_flags_are_passed_on_wherever_they_stand(run: Run, calls: list[dict[str, Any]]) -> None:
    assert run("train", "--resume", "recipe.yaml").code == 0
    assert run("train", "recipe.yaml", "training.steps=2", "--dry-run").code == 0
    assert [(call["resume"], call["dry_run"]) for call in calls] == [(True, False), (False, True)]


def test_a_used_output_folder_is_refused_and_says_what_to_type(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.txt").touch()  # of a launch that failed before its first step
    assert run("train", "recipe.yaml").code == 0
    (tmp_path / "out" / "log.jsonl").touch()
    line = run("train", "recipe.yaml", "training.steps=3", "output=out")
    assert line.code == 2
    assert "mmalign train recipe.yaml training.steps=3 output=out --resume\n" in line.err
    assert "mmalign train recipe.yaml training.steps=3 output=out-2\n" in line.err
    assert len(calls) == 1
    assert run("train", "recipe.yaml", "--resume").code == 0
    assert run("train", "recipe.yaml", "--dry-run").code == 0
    assert len(calls) == 3


def test_only_the_main_process_checks_the_folder_and_speaks(
    run: Run, calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "written-by-rank-0").touch()
    monkeypatch.setenv("RANK", "1")
    line = run("train", "recipe.yaml")
    assert (line.code, line.out, len(calls)) == (0, "", 1)


def test_an_output_that_is_a_file_is_refused(run: Run, calls: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    line = run("train", "recipe.yaml")
    assert line.code == 2
    assert "out is a file" in line.err
    assert not calls


def test_a_failed_run_is_one_line_and_exit_code_1(run: Run, calls: list[dict[str, Any]]) -> None:
    line = run("train", "recipe.yaml", "training.seed=13")
    assert (line.code, line.err) == (1, "error: the loss is not finite at step 3 (samples a, b)\n")


def test_debug_shows_the_traceback_too(run: Run, calls: list[dict[str, Any]]) -> None:
    for arguments in (("--debug", "train", "recipe.yaml"), ("train", "recipe.yaml", "--debug")):
        line = run(*arguments, "training.seed=13")
        assert line.code == 1
        assert "Traceback" in line.err
        assert line.err.endswith("error: the loss is not finite at step 3 (samples a, b)\n")


def test_mistakes_stop_the_run(run: Run, calls: list[dict[str, Any]]) -> None:
    line = run("train", "recipe.yaml", "training.stesp=3", "model.name=big", "data.path=no.parquet")
    assert line.code == 2
    for words in ("3 mistakes", "training.stesp = 3", "there is no model 'big'", "no such file or folder"):
        assert words in line.err
    assert not calls
