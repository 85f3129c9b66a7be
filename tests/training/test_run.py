"""Whole runs of the image family on a tiny SDXL: the laws that hold between runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmalign.training.config import Config
from mmalign.training.log import Log
from mmalign.training.run import RunResult, train
from tests.data.making_data import FIXTURE
from tests.tiny_models import tiny_sdxl

LORA = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_v"]}
SPLITS = {"large": {"batch_size": 4, "accumulation": 1}, "small": {"batch_size": 1, "accumulation": 4}}
Go = Callable[..., RunResult]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL folder."""
    folder = tmp_path_factory.mktemp("model") / "sdxl"
    tiny_sdxl(folder)
    return folder


@pytest.fixture
def go(model: Path, tmp_path: Path) -> Go:
    """``go("name", lora=..., data={...}, **training)``: two DPO steps on the photographs, in a folder of that name."""

    def run(
        name: str, *, lora: dict | None = LORA, data: dict | None = None, beta: float = 2000, **training: Any
    ) -> RunResult:
        raw = {
            "model": {"name": str(model), "lora": lora},
            "data": {"source": "pickapic", "path": str(FIXTURE), "resolution": 32} | (data or {}),
            "objective": [{"loss": "dpo", "beta": beta}],
            "training": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3} | training,
            "output": str(tmp_path / name),
        }
        return train(Config.model_validate(raw))

    return run


def losses(result: RunResult) -> list[float]:
    log = Log(None)
    log.rewind(result.folder / "log.jsonl", step=10**9)
    return [line["loss"] for line in log.training]


def exported(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "aligned" / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("lora", [LORA, None])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_first_loss_is_log_2(go: Go, lora: dict | None, precision: str) -> None:
    first, second = losses(go("run", lora=lora, mixed_precision=precision))
    assert first == pytest.approx(math.log(2), abs=1e-7)
    assert second != first


def test_cache_and_workers_change_no_bit(go: Go) -> None:
    plain, other = go("plain"), go("other", data={"cache": "memory"}, workers=2)
    assert losses(other) == losses(plain)
    weights = exported(other)
    assert all(torch.equal(weights[name], weight) for name, weight in exported(plain).items())


def test_four_by_one_is_one_by_four(go: Go) -> None:
    """At beta 100; at 2000 the rounding of a logp in fp32, about 1e-8, already moves the loss by 2e-5."""
    large, small = (go(name, beta=100, **split) for name, split in SPLITS.items())
    assert losses(small) == pytest.approx(losses(large), abs=1e-5)
    assert losses(small)[1] < math.log(2) - 1e-3


def test_bf16_checkpointing_and_averaging_run_together(go: Go) -> None:
    """The average is exported: of a base at step 0 and two larger steps, it lies between."""
    settings = {"mixed_precision": "bf16", "gradient_checkpointing": True}
    plain, averaged = go("plain", **settings), go("averaged", **settings, ema={"decay": 0.9})
    assert losses(averaged) == losses(plain)
    last, average = exported(plain), exported(averaged)
    ups = [name for name in last if "lora_B" in name or "lora.up" in name]
    assert ups
    assert sum(average[name].abs().sum() for name in ups) < sum(last[name].abs().sum() for name in ups)


def test_a_run_is_a_function_of_its_seed(go: Go) -> None:
    first, same, other = go("a", steps=1), go("b", steps=1), go("c", steps=1, seed=1)
    weights = exported(same)
    assert all(torch.equal(weights[name], weight) for name, weight in exported(first).items())
    assert any(not torch.equal(weights[name], weight) for name, weight in exported(other).items())


def test_resume_without_a_checkpoint_says_so(model: Path, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "model": {"name": str(model), "lora": LORA},
            "data": {"source": "pickapic", "path": str(FIXTURE), "resolution": 32},
            "objective": [{"loss": "dpo", "beta": 2000}],
            "training": {"steps": 1},
            "output": str(tmp_path / "run"),
        }
    )
    with pytest.raises(ValueError, match="no checkpoint"):
        train(config, resume=True)
