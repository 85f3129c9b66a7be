"""A projector trained in full beside a LoRA on the language model: its reference, resume, and export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from mmalign.references import LoRAOffReference
from mmalign.training.config import Config
from mmalign.training.task import TRAIN, RowKey
from mmalign.training.trainer import Trainer
from mmalign.training.vlm_data import VLMData
from mmalign.training.vlm_run import VLMRun
from mmalign.training.vlms import VLMTask
from mmalign.vlm_data import table_of
from tests.vlm.tiny_processors import save_tiny_vlm
from tests.vlm.vlm_rows import LORA, config_of, pairs, write_rows

PROJECTOR = "model.multi_modal_projector"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vlm")
    save_tiny_vlm(made / "model")
    write_rows(made)
    return made


def config(folder: Path, out: Path, steps: int = 3) -> Config:
    lora = {**LORA, "train_also": ["multi_modal_projector"]}
    training = {"steps": steps, "checkpoint_every": 1, "learning_rate": 1e-2}
    return config_of(folder, model={"lora": lora}, training=training, output=str(out))


def task_of(config: Config) -> VLMTask:
    return VLMTask.from_config(config, VLMData({TRAIN: table_of(pairs())}, "rows"))


def scores_of(task: VLMTask) -> Any:
    batch = task.collate([task.load(RowKey(TRAIN, row, 7 + row)) for row in range(4)])
    with torch.no_grad():
        return task.score(task.policy, batch)


def fit(config: Config, *, resume: bool = False) -> VLMTask:
    task = task_of(config)
    Trainer(config, task, folder=Path(config.output)).fit(resume=resume)
    return task


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three steps at a stretch, and interrupted after the second."""
    root = tmp_path_factory.mktemp("runs")
    fit(config(folder, root / "resumed", 2))
    tasks = {
        "whole": fit(config(folder, root / "whole")),
        "resumed": fit(config(folder, root / "resumed"), resume=True),
    }
    return {"root": root, "fresh": task_of(config(folder, root / "fresh")), **tasks}


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_the_reference_stays_that_of_step_0(runs: dict[str, Any], run: str) -> None:
    fresh, task = runs["fresh"], runs[run]
    assert isinstance(task.reference, LoRAOffReference)
    before, after = scores_of(fresh), scores_of(task)
    assert before.chosen_logratio.abs().max() == before.rejected_logratio.abs().max() == 0
    assert torch.equal(after.ref_chosen_logp, before.ref_chosen_logp)
    assert torch.equal(after.ref_rejected_logp, before.ref_rejected_logp)
    assert (after.chosen_logratio != 0).all()
    moved = [f"{PROJECTOR}.{name}" for name in ("linear_1.weight", "linear_2.bias")]
    weights = [dict(of.components.model.named_parameters()) for of in (fresh, task)]
    assert all(not torch.equal(weights[0][name], weights[1][name]) for name in moved)
    assert task.reference.fingerprint() == fresh.reference.fingerprint()


def test_a_resumed_run_is_the_uninterrupted_one(runs: dict[str, Any]) -> None:
    logs = [(runs["root"] / run / "log.jsonl").read_text().splitlines() for run in ("whole", "resumed")]
    first, second = ([{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in log] for log in logs)
    assert first == second
    whole = dict(runs["whole"].policy.named_parameters())
    assert all(torch.equal(value, whole[name]) for name, value in runs["resumed"].policy.named_parameters())


def test_the_export_is_an_adapter_of_peft_with_modules_to_save(folder: Path, runs: dict[str, Any]) -> None:
    aligned = runs["root"] / "whole" / "aligned"
    assert json.loads((aligned / "adapter_config.json").read_text())["modules_to_save"] == [PROJECTOR]
    base = AutoModelForImageTextToText.from_pretrained(folder / "model")
    loaded = PeftModel.from_pretrained(base, str(aligned)).eval()
    task = runs["whole"]
    item = task.load(RowKey(TRAIN, 0, 7))
    given = {"input_ids": item.contexts[0].input_ids[None], **item.contexts[0].media}
    with torch.no_grad():
        expected = task.components.model.eval()(**given).logits
        torch.testing.assert_close(loaded(**given).logits, expected, rtol=0, atol=1e-5)
        tuned = AutoModelForImageTextToText.from_pretrained(folder / "model")
        tuned.load_adapter(aligned)
        torch.testing.assert_close(tuned.eval()(**given).logits, expected, rtol=0, atol=1e-5)
        with loaded.disable_adapter():
            assert (loaded(**given).logits - expected).abs().max() > 1e-3


def test_the_plan_counts_them(folder: Path, tmp_path: Path) -> None:
    # The LoRA of the other tests (448 weights), and two linear layers 16 -> 32 -> 32 with bias.
    assert VLMRun(config(folder, tmp_path)).trained == 448 + 16 * 32 + 32 + 32 * 32 + 32


@pytest.mark.parametrize(("strategy", "message"), [("fsdp", "train_also with the LoRA switched off")])
def test_strategies_that_would_share_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, message: str
) -> None:
    from mmalign.training.strategy import check_strategy

    monkeypatch.setenv("WORLD_SIZE", "2")
    given = config(folder, tmp_path)
    given.training.strategy = strategy  # type: ignore[assignment]
    with pytest.raises(ValueError, match=message):
        check_strategy(given)
