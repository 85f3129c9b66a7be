"""Over-optimisation is noticed: a held-out reward that falls while the proxy rises, and what it does to a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.evaluation.collapse import picture_measures
from mmalign.report import write_report
from mmalign.training.config import GuardConfig
from mmalign.training.config.evaluation import EvaluationConfig, PicturesConfig
from mmalign.training.config.stabilisers import stabiliser_problems
from mmalign.training.guards import Watches
from mmalign.training.picture_rewards import PictureRewards


def kinds(events):
    return [event.kind for event in events]


def drawn(watches, held_out, proxy):
    return kinds(watches.on_drawn({"held_out_reward": held_out, "proxy_reward": proxy}))


def test_the_alarm_is_a_fall_from_the_best_while_the_proxy_rises():
    watches = Watches(GuardConfig(over_optimisation=0.1))
    assert drawn(watches, 0.5, 1.0) == []
    assert drawn(watches, 0.8, 2.0) == []  # better by both
    assert drawn(watches, 0.75, 3.0) == []  # within the limit
    assert drawn(watches, 0.65, 1.5) == []  # both fell: no over-optimisation
    assert drawn(watches, 0.65, 3.0) == ["guard.over_optimisation"]


def test_the_best_survives_a_checkpoint():
    before, after = (Watches(GuardConfig(over_optimisation=0.1)) for _ in range(2))
    drawn(before, 0.8, 2.0)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert drawn(after, 0.6, 3.0) == ["guard.over_optimisation"]


def test_a_fall_below_the_untrained_model_needs_no_proxy():
    watches = Watches(GuardConfig(held_out_reward=0.1, action="warn"))
    assert kinds(watches.on_drawn({"held_out_reward": 0.5})) == []
    (event,) = watches.on_drawn({"held_out_reward": 0.3})
    assert (event.kind, event.stop) == ("guard.held_out_reward", False)
    assert watches.on_drawn({"held_out_reward": 0.2}) == []  # told once


@pytest.mark.parametrize("name", ["contrast", "sharpness"])
def test_contrast_and_sharpness_are_watched_like_saturation(name):
    watches = Watches(GuardConfig(**{name: 2.0}))
    assert kinds(watches.on_drawn({name: 0.1})) == []
    assert kinds(watches.on_drawn({name: 0.19})) == []
    assert kinds(watches.on_drawn({name: 0.21})) == [f"guard.{name}"]
    assert kinds(watches.on_drawn({name: 0.04})) == [f"guard.{name}"]


def test_what_a_guard_needs_is_asked_for():
    pictures = PicturesConfig(every=5, prompts=["a red circle"], proxy_reward="oracle")
    guard = GuardConfig(over_optimisation=0.1)
    told = stabiliser_problems(10, None, guard, EvaluationConfig(pictures=pictures))
    assert told == ["training.guard.over_optimisation needs evaluation.pictures.held_out_reward"]
    assert stabiliser_problems(10, None, guard, EvaluationConfig()) == [
        "training.guard.over_optimisation needs evaluation.pictures"
    ]
    with pytest.raises(ValueError, match="a reward cannot check itself"):
        PicturesConfig(every=5, prompts=["x"], proxy_reward="oracle", held_out_reward="oracle")


def test_measures_of_pictures():
    rng = np.random.default_rng(0)
    noisy = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    flat = [Image.new("RGB", (16, 16), (120, 130, 140))] * 2
    wild, dull = picture_measures(noisy), picture_measures(flat)
    assert set(wild) == {"saturation", "contrast", "sharpness", "diversity"}
    assert all(wild[name] > dull[name] for name in wild)


def test_the_rewards_of_a_run_are_means_over_its_pictures(monkeypatch):
    pictures = PicturesConfig(
        every=1, prompts=["a large solid red circle on a white background", "nonsense"], held_out_reward="oracle"
    )
    with pytest.raises(ValueError, match="nonsense"):
        PictureRewards.of(pictures)
    monkeypatch.setenv("RANK", "1")
    assert PictureRewards.of(pictures) is None

    class Size:
        def score(self, prompts, images):
            return torch.tensor([float(image.width) for image in images])

    found = PictureRewards({"proxy_reward": Size()}).mean(["a", "b"], [Image.new("RGB", (w, 4)) for w in (2, 6)])
    assert found == {"proxy_reward": 4.0}


def test_the_report_shows_both_rewards(tmp_path):
    lines = [
        {"step": step, "split": "pictures", "diversity": 0.3, "saturation": 0.2, "contrast": 0.2, "sharpness": 0.1,
         "proxy_reward": 1.0 + step, "held_out_reward": 0.8 - step / 100}
        for step in (0, 10, 20)
    ]  # fmt: skip
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path).read_text()
    for text in ("Proxy reward of the fixed prompts", "Held-out reward of the fixed prompts", ">sharpness<"):
        assert text in page
