"""The loop: accumulation equals the large batch, schedules, averages, measurements, and clean ends."""

import io
import json
import math
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toy_task import DPO, ToyTask, config

from mmalign.losses.metrics import preference_metrics
from mmalign.training.config import TrainingConfig
from mmalign.training.failures import NonFiniteLoss, OutOfMemory, TrainingInterrupted
from mmalign.training.optim import learning_rate
from mmalign.training.trainer import FitResult, Trainer


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


TWO_TERMS = (DPO, {"loss": "sft", "coefficient": 0.3})


def fit(task: ToyTask, folder: Path, *, resume: bool = False, evaluation: dict | None = None, **training) -> FitResult:
    objective = [{"loss": term.loss_name, **term.keywords} for term in task.objective.terms]
    settings = config(folder, objective=objective, evaluation=evaluation, **training)
    console = Console(file=io.StringIO())
    return Trainer(settings, task, folder=folder, command="mmalign train toy", console=console).fit(resume=resume)


def trained(task: ToyTask) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in task.policy.parameters() if p.requires_grad])


@pytest.mark.parametrize("objective", [(DPO,), TWO_TERMS], ids=["dpo", "dpo+sft"])
@pytest.mark.parametrize("lacking", [False, True], ids=["all rows", "rows lacking a branch"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_accumulation_equals_the_large_batch(tmp_path, objective, lacking, dtype, tolerance) -> None:
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        task = ToyTask(objective, dtype=dtype, lacking=lacking)
        start = trained(task)
        result = fit(task, tmp_path / str(batch_size), batch_size=batch_size, accumulation=accumulation)
        results.append((trained(task), [line["loss"] for line in result.history]))
    (large, losses), *others = results
    assert (large - start).abs().max() > 0.05
    for weights, of_accumulation in others:
        torch.testing.assert_close(weights, large, rtol=0, atol=tolerance)
        assert of_accumulation == pytest.approx(losses, abs=tolerance)


def test_a_step_is_adamw_on_the_mean_loss(tmp_path) -> None:
    task = ToyTask(dtype=torch.float64)
    twin = ToyTask(dtype=torch.float64)
    parameters = [p for p in twin.policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05, betas=(0.8, 0.9), weight_decay=0.1)
    losses = []
    result = fit(task, tmp_path, steps=3, betas=(0.8, 0.9), weight_decay=0.1, max_grad_norm=0.1)
    for step in range(3):
        batch = twin.collate([twin.load(key) for key in task.visits[step * 4 : step * 4 + 4]])
        scores = twin.score(twin.policy, batch)
        loss = -torch.nn.functional.logsigmoid(0.5 * preference_with_gradient(scores)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()
        losses.append(loss.item())
    assert [line["loss"] for line in result.history] == pytest.approx(losses, abs=1e-12)
    torch.testing.assert_close(trained(task), trained(twin), rtol=0, atol=1e-12)


def preference_with_gradient(scores) -> torch.Tensor:
    assert "margin" in preference_metrics(scores)
    return scores.chosen_logratio - scores.rejected_logratio


def test_the_log_tells_what_the_report_reads(tmp_path) -> None:
    task = ToyTask(TWO_TERMS)
    result = fit(task, tmp_path, steps=4, log_every=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert [line["step"] for line in lines] == [2, 4]
    expected = {"loss", "loss_dpo", "loss_sft", "accuracy", "margin", "chosen_logratio", "rejected_logratio"}
    expected |= {"learning_rate", "grad_norm", "seconds", "margin_by_timestep"}
    assert expected <= lines[0].keys()
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_dpo"] + 0.3 * lines[0]["loss_sft"])
    assert lines[0]["margin"] == pytest.approx(lines[0]["chosen_logratio"] - lines[0]["rejected_logratio"])


def test_a_logged_number_is_the_mean_of_its_steps(tmp_path) -> None:
    each = fit(ToyTask(), tmp_path / "each", steps=6).history
    pairs = fit(ToyTask(), tmp_path / "pairs", steps=6, log_every=3).history
    for key in ("loss", "accuracy", "margin", "grad_norm"):
        means = [sum(line[key] for line in each[start : start + 3]) / 3 for start in (0, 3)]
        assert [line[key] for line in pairs] == pytest.approx(means)


def test_schedules() -> None:
    def rates(**settings) -> list[float]:
        training = TrainingConfig(steps=6, learning_rate=1.0, **settings)
        return [round(learning_rate(training, step), 4) for step in range(6)]

    assert rates() == [1.0] * 6
    assert rates(warmup_steps=2) == [0.5, 1, 1, 1, 1, 1]
    assert rates(schedule="linear", warmup_steps=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(schedule="cosine") == [round(0.5 * (1 + math.cos(math.pi * s / 6)), 4) for s in range(6)]


def test_the_logged_learning_rate_is_the_one_used(tmp_path) -> None:
    history = fit(ToyTask(), tmp_path, steps=4, schedule="linear").history
    assert [line["learning_rate"] for line in history] == pytest.approx([0.05, 0.0375, 0.025, 0.0125])


def test_frozen_weights_stay_and_are_not_in_the_checkpoint(tmp_path) -> None:
    task = ToyTask()
    before = task.policy.frozen.weight.clone()
    fit(task, tmp_path, checkpoint_every=6)
    assert torch.equal(task.policy.frozen.weight, before)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoints" / "step_000006" / "weights.safetensors")
    assert saved.keys() == {"trained.weight", "trained.bias"}
    assert torch.equal(saved["trained.weight"], task.policy.trained.weight)


def test_the_average_is_what_is_drawn_and_exported(tmp_path) -> None:
    plain, averaged = ToyTask(), ToyTask()
    pictures = {"pictures": {"every": 1, "prompts": ["x"]}}
    fit(plain, tmp_path / "plain", evaluation=pictures, steps=4)
    fit(averaged, tmp_path / "ema", evaluation=pictures, steps=4, ema={"decay": 0.999})
    shadow = plain.drawn[1]
    for update, weight in enumerate(plain.drawn[2:], start=2):
        decay = update / (update + 9)
        shadow = decay * shadow + (1 - decay) * weight
    torch.testing.assert_close(averaged.drawn[-1], shadow)
    exported = torch.load(tmp_path / "ema" / "aligned" / "policy.pt")
    torch.testing.assert_close(exported["trained.weight"], shadow)
    assert torch.equal(plain.drawn[0], averaged.drawn[0])  # before the first step


def test_pictures_and_descriptions_are_written(tmp_path) -> None:
    fit(ToyTask(), tmp_path, steps=3, evaluation={"pictures": {"every": 2, "prompts": ["x"]}})
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step_000000.png", "step_000002.png", "step_000003.png"]
    versions = json.loads((tmp_path / "versions.json").read_text())
    assert versions["command"] == "mmalign train toy"
    assert versions["torch"] == torch.__version__
    assert "batch_size: 4" in (tmp_path / "config.yaml").read_text()


def test_held_out_measurement_is_the_mean_over_its_rows_with_fixed_noise(tmp_path) -> None:
    task = ToyTask(TWO_TERMS, held_out=5)
    result = fit(task, tmp_path, steps=3, batch_size=2, evaluation={"every": 1})
    keys = sorted({key for key in task.visits if key.split == "held_out"}, key=lambda key: key.index)
    assert [key.index for key in keys] == list(range(5))  # one seed each, at all four measurements
    scores = task.score(task.policy, task.collate([task.load(key) for key in keys]))
    with torch.no_grad():
        loss = task.objective(scores).loss.item()
    assert result.held_out[-1]["loss"] == pytest.approx(loss, abs=1e-6)
    assert result.held_out[-1]["accuracy"] == pytest.approx(preference_metrics(scores)["accuracy"].mean().item())
    assert [line["step"] for line in result.held_out] == [0, 1, 2, 3]


def test_measuring_changes_nothing_about_training(tmp_path) -> None:
    objective = ({"loss": "bco_pair", "beta": 0.5, "shift": "running"},)
    alone, measured = ToyTask(objective, dropout=0.3), ToyTask(objective, dropout=0.3)
    settings = config(tmp_path, objective=objective)
    Trainer(settings, alone, folder=tmp_path / "a").fit()
    evaluation = {"every": 1, "pictures": {"every": 1, "prompts": ["x"]}}
    settings = config(tmp_path, objective=objective, evaluation=evaluation, ema={"decay": 0.9})
    Trainer(settings, measured, folder=tmp_path / "b").fit()
    a, b = (torch.load(tmp_path / name / "aligned" / "policy.pt")["trained.weight"] for name in "ab")
    assert not torch.equal(a, b)  # b exports the average
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open() if "held_out" not in line]
        for name in "ab"
    ]
    assert losses[0] == losses[1]


def test_early_stop_exports_the_best_checkpoint(tmp_path) -> None:
    # Steps this long overshoot: the held-out loss is best early on, then grows.
    task = ToyTask()
    evaluation = {"every": 1, "early_stop": {"metric": "loss", "patience": 2}}
    result = fit(task, tmp_path, steps=60, learning_rate=0.5, keep_checkpoints=1, evaluation=evaluation)
    losses = {line["step"]: line["loss"] for line in result.held_out if line["step"]}
    assert result.stopped_early
    assert result.best_step == min(losses, key=losses.__getitem__) == result.steps - 2
    assert task.exported is not None
    assert task.exported["exported_step"] == result.best_step
    assert task.exported["held_out"]["loss"] == min(losses.values())
    from safetensors.torch import load_file

    best = load_file(tmp_path / "checkpoints" / f"step_{result.best_step:06d}" / "weights.safetensors")
    exported = torch.load(tmp_path / "aligned" / "policy.pt")
    assert torch.equal(exported["trained.weight"], best["trained.weight"])


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_poisoned_row_stops_the_run_with_step_and_sample(tmp_path, log_every) -> None:
    task = ToyTask(poisoned=[7])
    with pytest.raises(NonFiniteLoss) as failure:
        fit(task, tmp_path, steps=8, log_every=log_every, checkpoint_every=1 if log_every == 1 else 4)
    visits = [key.index for key in task.visits]
    step = visits.index(7) // 4 + 1
    assert failure.value.step == step
    assert failure.value.sample_ids == ("train-7",)
    assert f"step {step} is not finite for sample train-7" in str(failure.value)
    for checkpoint in (tmp_path / "checkpoints").glob("step_*"):
        assert int(checkpoint.name[5:]) < step


def test_a_gradient_that_is_not_finite_is_told_apart(tmp_path, monkeypatch) -> None:
    task = ToyTask()
    task.policy.trained.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLoss, match="gradient of step 1 is not finite although its losses are"):
        fit(task, tmp_path)


def test_out_of_memory_says_what_to_change(tmp_path) -> None:
    task = ToyTask()

    def score(policy, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand so on")

    task.score = score
    with pytest.raises(OutOfMemory) as failure:
        fit(task, tmp_path, batch_size=4, accumulation=2)
    message = str(failure.value)
    assert "training.batch_size=2 training.accumulation=4" in message
    for setting in ("gradient_checkpointing=true", "mixed_precision=bf16", "model.lora", "data.resolution"):
        assert setting in message
    assert "and so on" not in message
    assert failure.value.__cause__ is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(tmp_path, number) -> None:
    task = ToyTask()
    score, before = task.score, signal.getsignal(number)

    def score_and_interrupt(policy, batch):
        if len(task.visits) == 8:
            os.kill(os.getpid(), number)
        return score(policy, batch)

    task.score = score_and_interrupt
    with pytest.raises(TrainingInterrupted, match=r"To go on: mmalign train toy --resume"):
        fit(task, tmp_path)
    assert signal.getsignal(number) == before
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert saved == ["step_000003"]
    interrupted = ToyTask()
    fit(interrupted, tmp_path, resume=True)
    whole = ToyTask()
    fit(whole, tmp_path / "whole")
    assert torch.equal(trained(interrupted), trained(whole))


def test_data_workers_change_nothing(tmp_path) -> None:
    here, workers = ToyTask(), ToyTask()
    fit(here, tmp_path / "0")
    fit(workers, tmp_path / "2", workers=2)
    assert torch.equal(trained(here), trained(workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_row_is_one_message(tmp_path, workers) -> None:
    task = ToyTask()

    def load(key):
        raise ValueError(f"row {key.index}: not a picture")

    task.load = load
    with pytest.raises(ValueError, match="not a picture") as failure:
        fit(task, tmp_path, workers=workers)
    assert re.fullmatch(r"row \d: not a picture", str(failure.value))  # where it came from is a note beside it


def test_bf16_runs_in_autocast_and_keeps_full_precision_weights(tmp_path) -> None:
    task, seen = ToyTask(), []
    task.policy.trained.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fit(task, tmp_path, mixed_precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert task.policy.trained.weight.dtype == torch.float32
    seen.clear()
    task.policy(torch.zeros(1, 6))  # after the export the module is plain again
    assert seen == [torch.float32]


def test_adafactor_trains_and_refuses_betas(tmp_path) -> None:
    result = fit(ToyTask(), tmp_path / "a", steps=30, optimizer="adafactor", learning_rate=0.02)
    assert result.history[-1]["loss"] < 0.69
    with pytest.raises(ValueError, match=r"betas .* would be ignored: adafactor"):
        fit(ToyTask(), tmp_path / "b", optimizer="adafactor", betas=(0.5, 0.9))


def test_missing_packages_are_named_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mmalign.training.optim.find_spec", lambda name: None)
    monkeypatch.setattr("mmalign.training.strategy.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        fit(ToyTask(), tmp_path, optimizer="adamw_8bit")
    with pytest.raises(ValueError, match="wandb is not installed; pip install wandb"):
        fit(ToyTask(), tmp_path, trackers=["wandb"])


def test_tensorboard_gets_the_logged_numbers(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(ToyTask(), tmp_path, trackers=["tensorboard"], evaluation={"every": 3})
    events = EventAccumulator(str(tmp_path / "trackers" / "mmalign")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([line["loss"] for line in result.history])
    assert [event.step for event in events.Scalars("held_out/accuracy")] == [0, 3, 6]


def test_gradient_checkpointing_is_switched_on_or_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="ToyPolicy does not offer it"):
        fit(ToyTask(), tmp_path, gradient_checkpointing=True)
    task, calls = ToyTask(), []
    task.policy.enable_gradient_checkpointing = lambda: calls.append(1)
    fit(task, tmp_path, steps=1, gradient_checkpointing=True)
    assert calls == [1]


def test_compile_trains_what_is_trained_without_and_exports_plain_names(tmp_path, monkeypatch) -> None:
    compiled, compile_in_place = [], torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: compiled.append(module) or compile_in_place(module, backend="eager")
    )
    plain, task = ToyTask(), ToyTask()
    fit(plain, tmp_path / "plain")
    fit(task, tmp_path / "compiled", compile=True, checkpoint_every=6)
    assert compiled == [task.policy, task.reference.module]
    torch.testing.assert_close(trained(task), trained(plain), rtol=0, atol=1e-6)
    exported = torch.load(tmp_path / "compiled" / "aligned" / "policy.pt")
    assert exported.keys() == plain.policy.state_dict().keys()


def test_strategies_that_are_not_in_effect_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="ddp was asked for, but this process runs as single"):
        fit(ToyTask(), tmp_path, strategy="ddp")
    with pytest.raises(ValueError, match="fsdp was asked for, but this process runs as single"):
        fit(ToyTask(), tmp_path, strategy="fsdp")


def test_half_precision_or_no_trained_weights_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="trained parameters are float16"):
        fit(ToyTask(dtype=torch.float16), tmp_path)
    task = ToyTask()
    task.policy.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the policy is trained"):
        fit(task, tmp_path)


def test_plain_lines_without_a_terminal_and_a_bar_with_one(tmp_path) -> None:
    for terminal in (False, True):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=120)
        Trainer(config(tmp_path), ToyTask(), folder=tmp_path / str(terminal), console=console).fit()
        text = output.getvalue()
        assert "loss 0." in text
        assert "accuracy" in text
        assert ("\x1b" in text) == terminal
        assert ("step 6/6" in text) != terminal
        assert sys.stdout is not output
