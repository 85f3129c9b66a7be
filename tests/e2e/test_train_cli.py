"""``mmalign train`` as a user types it: photographs in, an aligned model and a report out."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import StableDiffusionXLPipeline

from mmalign.cli.__main__ import main
from tests.data.making_data import FIXTURE
from tests.tiny_models import tiny_sdxl

REPOSITORY = Path(__file__).parents[2]
LORA = {"rank": 4, "alpha": 12, "targets": ["to_k", "to_q", "to_v", "to_out.0"]}


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Run the command line in this process, which saves the imports: exit code, output, errors."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def mmalign(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mmalign.cli", *arguments],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        # As many threads as in this process: sums over two threads round differently.
        env=os.environ
        | {"OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny SDXL in ``model`` and ``recipe.yaml``."""
    folder = tmp_path_factory.mktemp("workplace")
    tiny_sdxl(folder / "model")
    recipe: dict[str, Any] = {
        "model": {"name": "model", "lora": LORA},
        "data": {"source": "pickapic", "path": str(FIXTURE), "resolution": 32, "flip": True, "caption_dropout": 0.2},
        "objective": [{"loss": "dpo", "beta": 2000}],
        "training": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 2},
        "evaluation": {"pictures": {"every": 4, "prompts": ["a cat", "a dog"], "inference_steps": 2}},
        "output": "out",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "split" not in line]


def test_dry_run_shows_the_plan_and_writes_nothing(typed: Typed, workplace: Path) -> None:
    before = sorted(workplace.rglob("*"))
    code, out, err = typed("train", "recipe.yaml", "--dry-run", "output=dry")
    assert code == 0, err
    for words in ("9 to train on", "1 tie dropped", "LoRA adapters off", "beta: 2000", "0.89 epochs"):
        assert words in out
    # 4 channels x 16 x 16 latents: 2000 / 1024.
    assert "1,024 latent values" in out
    assert "1.95" in out
    assert sorted(workplace.rglob("*")) == before


def test_train_resume_and_load(typed: Typed, workplace: Path) -> None:
    whole = mmalign("train", "recipe.yaml", "output=whole", cwd=workplace)
    assert whole.returncode == 0, whole.stderr
    assert "Traceback" not in whole.stderr
    folder = workplace / "whole"
    assert losses(folder)[0] == pytest.approx(math.log(2), abs=1e-7)
    assert "report: whole/report.html" in whole.stdout
    report = (folder / "report.html").read_text()
    assert "1 tie dropped" in report
    assert len(list((folder / "pictures").glob("*.png"))) == 2

    code, _, err = typed("train", "recipe.yaml", "output=halves", "training.steps=2")
    assert code == 0, err
    rest = mmalign("train", "recipe.yaml", "output=halves", "--resume", cwd=workplace)
    assert rest.returncode == 0, rest.stderr
    assert losses(workplace / "halves") == losses(folder)

    weights = loaded(workplace, "whole")
    assert any(weight.abs().max() > 0 for key, weight in weights.items() if "lora_B" in key)
    for key, weight in loaded(workplace, "halves").items():
        assert torch.equal(weight, weights[key]), key


def loaded(workplace: Path, run: str) -> dict[str, torch.Tensor]:
    """The UNet's weights after plain diffusers has loaded the run's LoRA, alpha and rank included."""
    base = StableDiffusionXLPipeline.from_pretrained(workplace / "model")
    base.load_lora_weights(workplace / run / "aligned")
    (adapter,) = base.unet.peft_config.values()
    assert (adapter.r, adapter.lora_alpha) == (4, 12)
    return base.unet.state_dict()


def test_other_data_is_refused_on_resume(typed: Typed, workplace: Path) -> None:
    pairs = workplace / "pairs.parquet"
    pairs.write_bytes(FIXTURE.read_bytes())
    line = ("train", "recipe.yaml", "data.path=pairs.parquet", "output=moved", "training.steps=2")
    assert typed(*line)[0] == 0
    # The same settings and the same number of rows, but in another order.
    table = pq.read_table(pairs)
    pq.write_table(table.take(list(reversed(range(len(table))))), pairs)
    code, _, err = typed(*line[:-1], "--resume")
    assert code == 2
    assert "was started with other rows" in err


def test_a_mistake_is_one_message(typed: Typed, workplace: Path) -> None:
    code, _, err = typed("train", "recipe.yaml", "output=bad", "training.timesteps.kind=logit_normal")
    assert code == 2
    assert err.startswith("error: training.timesteps.kind=logit_normal is not for diffusion models")
    assert err.count("\n") == 1
    assert not (workplace / "bad").exists()
