"""A run that was killed and resumed is the run that was not."""

import io
import json
import os
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy_task import DPO, ToyTask, config

from mmalign.training.trainer import Trainer

RUNNING = {"loss": "bco_pair", "beta": 0.5, "shift": "running"}
EVERYTHING = {
    "steps": 12,
    "checkpoint_every": 3,
    "log_every": 2,
    "ema": {"decay": 0.9},
    "schedule": "cosine",
    "warmup_steps": 2,
    "accumulation": 2,
    "batch_size": 2,
    "evaluation": {"every": 4, "early_stop": {"metric": "loss", "patience": 9}},
    "objective": (RUNNING,),
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut would, and that is not tested here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def fit(folder: Path, *, resume: bool = False, task: ToyTask | None = None, **settings) -> ToyTask:
    settings = {**EVERYTHING, **settings}
    task = task or ToyTask(settings["objective"], dropout=0.3)
    console = Console(file=io.StringIO())
    Trainer(config(folder, **settings), task, folder=folder, console=console).fit(resume=resume)
    return task


def lines(folder: Path) -> list[dict]:
    """The log, bit by bit except for the clock."""
    log = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in log]


def _train_until_killed(folder: Path, rows: int) -> None:
    task = ToyTask(EVERYTHING["objective"], dropout=0.3)
    score = task.score

    def score_or_die(policy, batch):
        if len(task.visits) >= rows:
            os.kill(os.getpid(), 9)
        return score(policy, batch)

    task.score = score_or_die
    fit(folder, task=task)


@pytest.mark.parametrize("killed_after_rows", [23, 37, 49])
def test_kill_and_resume_gives_the_losses_of_an_uninterrupted_run(tmp_path, killed_after_rows) -> None:
    whole = fit(tmp_path / "whole")
    process = get_context("fork").Process(target=_train_until_killed, args=(tmp_path / "run", killed_after_rows))
    process.start()
    process.join()
    assert process.exitcode == -9
    logged = [line["step"] for line in lines(tmp_path / "run") if "split" not in line]
    assert 0 < len(logged) < 6
    resumed = fit(tmp_path / "run", resume=True)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[name], weight), name
    first, second = (torch.load(tmp_path / name / "aligned" / "policy.pt") for name in ("whole", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_longer_run_with_another_split_of_the_batch_goes_on(tmp_path) -> None:
    fit(tmp_path, schedule="constant")
    task = fit(tmp_path, resume=True, steps=15, batch_size=4, accumulation=1, log_every=1, schedule="constant")
    assert [line["step"] for line in lines(tmp_path) if "split" not in line] == [2, 4, 6, 8, 10, 12, 13, 14, 15]
    assert len([key for key in task.visits if key.split == "train"]) == 3 * 4


def test_resume_without_a_checkpoint_says_so(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint in .*checkpoints to resume from"):
        fit(tmp_path, resume=True)


def test_a_used_folder_is_not_trained_over(tmp_path) -> None:
    fit(tmp_path)
    with pytest.raises(ValueError, match="is of an earlier run: go on with --resume"):
        fit(tmp_path)


def test_another_run_is_refused_with_every_reason(tmp_path) -> None:
    fit(tmp_path)
    changed = {"learning_rate": 0.01, "batch_size": 8, "objective": ({**RUNNING, "beta": 0.7},), "log_every": 1}
    task = ToyTask(changed["objective"], rows=11, weights_seed=1)
    with pytest.raises(ValueError, match="cannot be continued") as refusal:
        fit(tmp_path, resume=True, task=task, steps=12, **changed)
    message = str(refusal.value)
    for reason in (
        "training.learning_rate: 0.05 then, 0.01 now",
        "objective.0.beta: 0.5 then, 0.7 now",
        "processes: 4 then, 16 now",
        "the run has 12 steps already",
        "'train': 10, 'held_out': 5} then, {'train': 11",
        "the reference's weights are not those the run began with",
    ):
        assert reason in message
    assert "log_every" not in message
    assert "training.batch_size: " not in message


def test_the_reference_is_the_original_one_and_is_checked(tmp_path) -> None:
    fit(tmp_path / "a", objective=(DPO,))
    state = json.loads((tmp_path / "a" / "checkpoints" / "step_000012" / "state.json").read_text())
    assert state["reference"] == ToyTask().reference.fingerprint()
    task = ToyTask(weights_seed=3)
    with pytest.raises(ValueError, match="give it the original base model") as refusal:
        fit(tmp_path / "a", resume=True, steps=13, objective=(DPO,), task=task)
    assert str(refusal.value).count("\n  - ") == 1


def test_state_tells_what_a_run_was_made_with(tmp_path) -> None:
    fit(tmp_path)
    state = json.loads((tmp_path / "checkpoints" / "step_000012" / "state.json").read_text())
    assert state["step"] == 12
    assert state["config"]["training"]["ema"] == {"decay": 0.9}
    assert state["versions"]["processes"] == 1
    assert state["best"]["metric"] == "loss"
    assert state["rows_per_step"] == 4


def test_a_fresh_start_drops_the_log_of_a_run_without_checkpoints(tmp_path) -> None:
    tmp_path.joinpath("log.jsonl").write_text('{"step": 1, "loss": 9}\n')
    fit(tmp_path)
    assert lines(tmp_path) == lines_of_fresh(tmp_path / "fresh")


def lines_of_fresh(folder: Path) -> list[dict]:
    fit(folder)
    return lines(folder)
