"""Transforms and aggregates by hand, and combined rewards that are saved, loaded and refused."""

import math

import numpy as np
import pytest
import torch

from mmalign.evaluation import combining
from mmalign.evaluation.combined import CombinedReward
from mmalign.evaluation.combining import Moments
from mmalign.labelling.rewards import open_reward
from mmalign.rewards import RewardModel


class Fake:
    """Scores a picture by what it is: a number."""

    scale, prompt_limit, licence, source = "numbers", 77, "none", "nowhere"

    def __init__(self, name, factor=1.0, version="1"):
        self.name, self.factor, self.version = name, factor, version

    def score(self, prompts, images):
        return torch.tensor([self.factor * image for image in images], dtype=torch.float64)


MODELS = {"a": Fake("a"), "b": Fake("b", -2.0)}


def find(name, **options):
    assert not options
    return MODELS[name]


def build(**data):
    return CombinedReward.from_dict(data, find=find)


def test_moments_merge_to_those_of_everything():
    values = np.random.default_rng(0).normal(3, 2, 100)
    parts = Moments()
    for part in np.split(values, [1, 40, 40]):
        parts = parts.merged(part)
    assert (parts.count, parts.mean, parts.std) == pytest.approx((100, values.mean(), values.std(ddof=1)))
    assert Moments().merged([1.0]).standardised([5.0]).tolist() == [0.0]


def test_transforms_by_hand():
    z = combining.per_prompt_z([1.0, 10.0, 3.0, 10.0], ["p", "q", "p", "q"])
    assert z.tolist() == pytest.approx([-1 / math.sqrt(2), 0, 1 / math.sqrt(2), 0])
    with pytest.raises(ValueError, match="the prompt 'q' has one picture"):
        combining.per_prompt_z([1.0, 2.0, 3.0], ["p", "p", "q"])
    assert combining.quantile([0.0, 1.0, 1.5, 9.0], [1, 1, 2, 3]).tolist() == [0, 0.25, 0.5, 1]
    u = combining.log_sigmoid_centred([0.0, 1000.0, -1000.0], [0.0, 0.0, 0.0])
    assert u.tolist() == pytest.approx([-math.log(2), 0, -1000])


def test_a_sum_of_log_sigmoids_prefers_good_on_all_to_best_on_one():
    all_good, one_best = np.array([1.0, 1.0]), np.array([6.0, -3.0])
    assert all_good.sum() < one_best.sum()
    zero = np.zeros(2)
    assert combining.log_sigmoid_centred(all_good, zero).sum() > combining.log_sigmoid_centred(one_best, zero).sum()


def test_aggregates_by_hand():
    columns = np.array([[1.0, 4.0], [3.0, 0.0]])
    assert combining.weighted_sum(columns, [1, 2]).tolist() == [7, 4]
    assert combining.weighted_mean(columns, [1, 3]).tolist() == [2.5, 1]
    assert combining.worst_case(columns).tolist() == [1, 0]
    assert combining.lower_confidence(columns, [1, 1], kappa=0.5).tolist() == [2 - 0.5, 2 - 1.0]
    # psi of three pictures by two rewards: the first orders 0 > 1 > 2, the second ties 0 and 2 above 1
    psi = combining.win_probability(np.array([[3.0, 2.0, 1.0], [5.0, 0.0, 5.0]]))
    assert psi.tolist() == pytest.approx([(1 + 0.75) / 2, (0.5 + 0) / 2, (0 + 0.75) / 2])
    assert psi.mean() == pytest.approx(0.5)


def test_a_multiplier_grows_while_its_constraint_is_violated_and_never_below_zero():
    assert combining.multiplier_step(0.0, mean_score=0.5, at_least=0.8, rate=2.0) == pytest.approx(0.6)
    assert combining.multiplier_step(0.1, mean_score=2.0, at_least=0.8, rate=2.0) == 0.0


def test_a_combined_reward_is_a_reward_model():
    model = build(name="both", rewards=[{"reward": "a"}, {"reward": "b", "weight": 0.25}])
    assert isinstance(model, RewardModel)
    assert model.score(["x", "y"], [1.0, 4.0]).tolist() == [0.5, 2.0]
    assert model.prompt_limit == 77


@pytest.mark.parametrize("transform", ["frozen_z", "quantile", "log_sigmoid"])
def test_frozen_transforms_need_a_reference_set_and_survive_saving(tmp_path, transform):
    settings = {"rewards": [{"reward": "a", "transform": transform}]}
    model = build(**settings)
    with pytest.raises(ValueError, match=f"transform {transform} of a has no reference set yet"):
        model.score(["x"], [1.0])
    unfitted = model.version
    model.fit(["x", "x", "y", "y"], [1.0, 3.0, 5.0, 9.0])
    scores = model.score(["x", "y"], [2.0, 6.0])
    model.save(tmp_path / "state.json")
    again = build(**settings)
    again.load(tmp_path / "state.json")
    assert again.score(["x", "y"], [2.0, 6.0]).tolist() == scores.tolist()
    assert again.version == model.version != unfitted
    if transform == "log_sigmoid":  # r_ref is the median by prompt: 2 and 7
        assert scores.tolist() == pytest.approx([-math.log(2), -math.log1p(math.e)])
        with pytest.raises(ValueError, match="no baseline for the prompt 'z'"):
            model.score(["z"], [1.0])


def test_running_scores_change_at_a_step_only():
    model = build(rewards=[{"reward": "a", "transform": "running_z"}])
    first = model.score(["x"] * 3, [1.0, 2.0, 3.0])
    assert first.tolist() == [-1, 0, 1]
    assert model.score(["x"] * 3, [1.0, 2.0, 3.0]).tolist() == first.tolist()
    model.step()
    version = model.version
    after = model.score(["x"], [4.0])
    assert after.tolist() == pytest.approx([2 / np.std([1, 2, 3, 1, 2, 3], ddof=1)])
    assert model.version == version


def test_constraints_pull_until_they_hold():
    model = build(rewards=[{"reward": "a"}], constraints=[{"reward": "b", "at_least": -4.0, "rate": 0.5}])
    assert model.score(["x"], [3.0]).tolist() == [3.0]  # no multiplier yet
    assert model.step() == {"b": pytest.approx(1.0)}  # -6 is 2 below -4
    assert model.score(["x"], [3.0]).tolist() == [pytest.approx((3 - 2) / 2)]
    model.score(["x"], [0.0])
    assert model.step() == {"b": pytest.approx(1.0 + 0.5 * (-4 + 3))}


def test_a_state_of_another_version_is_refused(tmp_path, monkeypatch):
    settings = {"rewards": [{"reward": "a", "transform": "quantile"}]}
    model = build(**settings)
    model.fit(["x", "x"], [1.0, 2.0])
    model.save(tmp_path / "state.json")
    monkeypatch.setitem(MODELS, "a", Fake("a", version="2"))
    with pytest.raises(ValueError, match="scores of different versions do not compare"):
        build(**settings).load(tmp_path / "state.json")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"rewards": []}, "rewards: List should have at least 1 item"),
        ({"rewards": [{"reward": "a"}], "kappa": 2.0}, "kappa belongs to aggregate: lower_confidence"),
        ({"rewards": [{"reward": "a", "weight": 2}], "aggregate": "min"}, "weight of a would be ignored"),
        ({"rewards": [{"reward": "a", "baseline_level": 0.8}]}, "baseline_level of a belongs to transform"),
        ({"rewards": [{"reward": "a"}, {"reward": "a"}]}, "reward a is there twice"),
        ({"rewards": [{"reward": "a", "wieght": 2}]}, "rewards.0.wieght: Extra inputs"),
    ],
)
def test_mistakes_are_named(data, told):
    with pytest.raises(ValueError, match=told):
        build(**data)


def test_a_yaml_file_is_a_reward_and_finds_its_state_beside_it(tmp_path):
    file = tmp_path / "quality.yaml"
    file.write_text("name: q\nstate: q.json\nrewards:\n  - {reward: oracle, transform: quantile}\n")
    model = open_reward(str(file))
    model.fit_scores(["x"] * 4, {"oracle": [0.1, 0.2, 0.3, 0.4]})
    model.save(model.state_file)
    assert open_reward(str(file)).combine(["x"], {"oracle": [0.25]}).tolist() == [0.5]
    with pytest.raises(ValueError, match="there is no such file"):
        open_reward(str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="gives each of its rewards its own options"):
        open_reward(str(file), device="cpu")
