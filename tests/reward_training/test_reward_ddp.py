"""Two processes (gloo, CPU) train a reward model as one does."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmalign.training.loading import load_config
from mmalign.training.run import train
from tests.reward_training.tiny_rewards import overrides, save_pairs, save_tiny_clip
from tests.training.two_processes import on_two

LOGGED = ("loss", "accuracy", "margin", "grad_norm")


def run(recipe: str, data: Path, out: Path, batch_size: int) -> list[dict]:
    changes = {"output": out, "training.batch_size": batch_size, "training.steps": 3, "training.log_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmalign.training.run.write_report", lambda folder: folder)
        train(load_config(recipe, overrides(data, **changes)))
    return [json.loads(line) for line in (out / "log.jsonl").open()]


@pytest.mark.parametrize("recipe", ["playground/reward_bt", "playground/reward_gpm"])
def test_two_processes_train_the_reward_that_one_trains(recipe, tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "clip")
    save_pairs(tmp_path / "pairs.parquet")
    one = run(recipe, tmp_path, tmp_path / "one", 8)
    on_two(partial(run, recipe, tmp_path, tmp_path / "two", 4), ACCELERATE_USE_CPU="true")
    two = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").open()]
    assert [(line["step"], line.get("split")) for line in one] == [(line["step"], line.get("split")) for line in two]
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name in LOGGED:
            if name in line:
                assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (line["step"], name)
    files = sorted(path.name for path in (tmp_path / "one" / "aligned").glob("*.safetensors"))
    assert files == ["head.safetensors", "model.safetensors"][-len(files) :]
    for file in files:
        expected, got = (load_file(tmp_path / name / "aligned" / file) for name in ("one", "two"))
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            # A bias of the keys moves no attention: its gradient is rounding alone, which Adam makes as large as any.
            if not name.endswith("k_proj.bias"):
                torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6, msg=name)
    before, towers = (load_file(tmp_path / name / "model.safetensors") for name in ("clip", "one/aligned"))
    changed = any(not torch.equal(value, before[name]) for name, value in towers.items())
    assert changed == (recipe == "playground/reward_bt")  # a head is trained on towers as they are
    assert all(line["grad_norm"] > 0 for line in one if "split" not in line)
