"""Finding reward models: the built-in oracle, installed plug-ins, and messages that say what there is."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image

import mmalign.rewards as rewards
from mmalign.evaluation import OracleScorer, RewardScorer, find_scorer
from mmalign.playground.captions import caption
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene
from mmalign.rewards import GROUP, OracleReward, RewardModel, find_reward, installed_rewards


class Length:
    name, scale, prompt_limit, version = "length", "characters", None, "1"
    licence, source = "Apache-2.0", "no weights"

    def score(self, prompts, images):
        return torch.tensor([float(len(prompt)) for prompt in prompts])


class NotAReward:
    name = "nothing"


@pytest.fixture
def plug_ins(monkeypatch):
    entries = [EntryPoint("length", f"{__name__}:Length", GROUP), EntryPoint("broken", f"{__name__}:NotAReward", GROUP)]
    monkeypatch.setattr(rewards, "entry_points", lambda group: entries if group == GROUP else [])
    return entries


def test_plug_ins_are_found_by_name(plug_ins):
    model = find_reward("length")
    assert isinstance(model, RewardModel)
    assert model.score(["abc", "a"], [None, None]).tolist() == [3.0, 1.0]
    assert installed_rewards() == ["brightness", "broken", "contrast", "length", "oracle", "saturation", "sharpness"]


def test_an_unknown_name_lists_what_is_installed(plug_ins):
    with pytest.raises(
        ValueError, match="no reward model 'pickscore'; installed: brightness, broken, contrast, length, oracle"
    ):
        find_reward("pickscore")


def test_a_plug_in_that_is_no_reward_model_is_named(plug_ins):
    with pytest.raises(ValueError, match="NotAReward, installed as reward 'broken', is not a reward model"):
        find_reward("broken")


def test_two_plug_ins_of_one_name_are_refused(plug_ins):
    plug_ins.append(EntryPoint("oracle", f"{__name__}:Length", GROUP))
    with pytest.raises(ValueError, match=r"reward 'oracle' of .*Length is taken already"):
        find_reward("length")


def test_the_oracle_is_built_in():
    assert isinstance(find_reward("oracle"), OracleReward)
    assert isinstance(OracleReward(), RewardModel)
    blank = Image.new("RGB", (64, 64), (246, 246, 244))
    scene = sample_scene(np.random.default_rng(0))
    shares = OracleReward().score([caption(scene)] * 2, [Image.fromarray(render(scene)), blank])
    assert shares[0] == 1
    assert shares[1] < 0.5


def test_scorers_by_name(plug_ins):
    assert isinstance(find_scorer("oracle"), OracleScorer)
    scorer = find_scorer("length")
    assert isinstance(scorer, RewardScorer)
    assert scorer(["abc"], [None]).scores == [3.0]
