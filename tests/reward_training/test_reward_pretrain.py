"""The playground's CLIP is made on demand by the script that made the shipped one."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmalign.rewards import find_reward
from reward_models.training import pretrain as script
from reward_models.training.pretrain import ClipSettings, build_tiny_clip, pretrain


def test_two_steps_make_a_folder_that_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = build_tiny_clip().state_dict()

    def render_dataset(rows: int, seed: int) -> tuple[torch.Tensor, list[str]]:
        draws = torch.Generator().manual_seed(seed)
        pictures = torch.randint(0, 256, (rows, 3, 64, 64), generator=draws, dtype=torch.uint8)
        return pictures, [f"a large solid {('red', 'blue')[row % 2]} circle" for row in range(rows)]

    monkeypatch.setattr(script, "render_dataset", render_dataset)  # the real one starts processes
    # Warm-up makes 0.005 of that rate.
    record = pretrain(tmp_path / "clip", ClipSettings(images=8, steps=2, batch=4, judged=20, learning_rate=1.0))
    assert json.loads((tmp_path / "clip" / "pretrain.json").read_text()) == record
    assert set(record["quality"]) == {"top_1", "shape", "colour", "size", "style", "background"}
    reward = find_reward("clip-reward", weights=tmp_path / "clip", device="cpu")
    score = reward.score(["a large solid red circle"], [Image.new("RGB", (64, 64), "red")])
    assert score.isfinite().all()
    trained = reward.towers.model.state_dict()["vision_model.embeddings.class_embedding"]  # type: ignore[attr-defined]
    apart = (trained - start["vision_model.embeddings.class_embedding"]).abs().max()
    assert 1e-3 < apart < 0.1  # two steps away from tiny-llava's
    assert not list((tmp_path / "clip").glob("progress*"))
    assert str(tmp_path) not in (tmp_path / "clip" / "config.json").read_text()
    assert "_name_or_path" not in (tmp_path / "clip" / "config.json").read_text()
