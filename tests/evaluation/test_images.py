"""The whole evaluation on pictures whose brightness is their quality, so every number is known beforehand."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mmalign.evaluation import ImageEvaluation, ImageScores, OracleScorer, RewardScorer, evaluate_images
from mmalign.playground.captions import caption
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene

PROMPTS = ["one", "two", "three [x]", "four"]


def grey(level):
    return Image.new("RGB", (16, 16), (level,) * 3)


class Brightness:
    """Score = brightness; it is `light` above 100 and, for prompts with an o, `bright` above 200."""

    name = "brightness [test]"

    def __call__(self, prompts, images):
        levels = [image.getpixel((0, 0))[0] for image in images]
        correct = [
            {"light": level > 100} | ({"bright": level > 200} if "o" in prompt else {})
            for prompt, level in zip(prompts, levels, strict=True)
        ]
        return ImageScores([level / 255 for level in levels], correct)


BASE = [[grey(50), grey(150)], [grey(150), grey(150)], [grey(50), grey(50)], [grey(250), grey(250)]]
ALIGNED = [[grey(150), grey(150)], [grey(250), grey(100)], [grey(150), grey(50)], [grey(250), grey(250)]]


@pytest.fixture(scope="module")
def evaluation():
    return evaluate_images(BASE, ALIGNED, PROMPTS, Brightness(), bootstrap=300, batch_size=3)


def test_every_number_is_the_one_counted_by_hand(evaluation):
    wins = evaluation.win_rate
    assert (wins.wins, wins.ties, wins.losses) == (3, 4, 1)
    assert wins.rate == pytest.approx(5 / 8)
    assert (evaluation.n_prompts, evaluation.n_seeds) == (4, 2)
    light, bright = evaluation.attributes["light"], evaluation.attributes["bright"]
    assert (light.base.value, light.aligned.value, light.n_prompts) == (5 / 8, 6 / 8, 4)
    assert (bright.base.value, bright.aligned.value, bright.n_prompts) == (2 / 6, 3 / 6, 3)  # not of "three"
    # all correct: light for "three", light and bright elsewhere
    assert (evaluation.all_correct.base.value, evaluation.all_correct.aligned.value) == (2 / 8, 4 / 8)
    assert evaluation.score.difference.value == pytest.approx((100 + 100 - 50 + 100) / 255 / 8)
    assert "pixels over seeds" in evaluation.diversity


def test_batch_size_changes_nothing_and_progress_counts_every_picture(evaluation):
    seen = []
    other = evaluate_images(BASE, ALIGNED, PROMPTS, Brightness(), bootstrap=300, batch_size=100, progress=seen.append)
    assert other == evaluation
    assert sum(seen) == 16


def test_json_round_trip_and_rules(evaluation):
    text = evaluation.to_json()
    assert ImageEvaluation.from_json(text) == evaluation
    assert json.loads(text)["rules"]["ties"] == "equal scores count one half"
    for bad in ('{"kind": "vlm"}', "[]", '{"kind": "images", "win_rate": {}}'):
        with pytest.raises(ValueError, match="not an image evaluation"):
            ImageEvaluation.from_json(bad)


def test_summary_holds_the_win_rate_with_its_interval(evaluation):
    wins = evaluation.win_rate
    assert f"win rate 0.625 [{wins.low:.3f}, {wins.high:.3f}]" in evaluation.summary()
    assert "all correct 0.250 -> 0.500" in evaluation.summary()
    assert "\n" not in evaluation.summary()


def test_the_printed_table_names_every_row_and_survives_brackets(evaluation):
    stream = io.StringIO()
    evaluation.print(Console(file=stream, width=110))
    text = stream.getvalue()
    for expected in ("win rate", "score", "all correct", "light", "bright", "pixels over seeds", "brightness [test]"):
        assert expected in text
    assert "[test] over 4 prompts" in text


class Constant:
    """A reward model in the shape of the protocol: brightness as a tensor, no attributes."""

    name, scale, prompt_limit, version = "constant", "0 to 1", None, "1"

    def score(self, prompts, images):
        return torch.tensor([image.getpixel((0, 0))[0] / 255 for image in images], requires_grad=True)


def test_a_reward_model_gives_a_win_rate_without_attributes():
    evaluation = evaluate_images(BASE, ALIGNED, PROMPTS, RewardScorer(Constant()), bootstrap=300)
    assert evaluation.win_rate.rate == pytest.approx(5 / 8)
    assert evaluation.all_correct is None
    assert evaluation.attributes == {}
    assert ImageEvaluation.from_json(evaluation.to_json()) == evaluation
    assert "all correct" not in evaluation.summary()


def test_uneven_input_is_refused():
    with pytest.raises(ValueError, match="4 prompts, 3 rows of base and 4 rows"):
        evaluate_images(BASE[:3], ALIGNED, PROMPTS, Brightness())
    with pytest.raises(ValueError, match=r"same number of seeds.*\[1, 2\]"):
        evaluate_images([BASE[0][:1], *BASE[1:]], ALIGNED, PROMPTS, Brightness())
    with pytest.raises(ValueError, match="aligned pictures must be PIL"):
        evaluate_images(BASE, [["a.png", "b.png"]] * 4, PROMPTS, Brightness())


def test_a_scorer_that_changes_its_attributes_between_sides_is_refused():
    class Fickle:
        name = "fickle"

        def __call__(self, prompts, images):
            return ImageScores([0.0] * len(images), [{str(image.getpixel((0, 0))): True} for image in images])

    with pytest.raises(ValueError, match="different attributes for pictures of one prompt, 'one'"):
        evaluate_images(BASE, ALIGNED, PROMPTS, Fickle())


def test_the_oracle_judges_real_renders():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(6)]
    right = [[Image.fromarray(render(scene))] for scene in scenes]
    blank = [[grey(128).resize((64, 64))] for _ in scenes]
    evaluation = evaluate_images(blank, right, [caption(scene) for scene in scenes], OracleScorer(), bootstrap=200)
    assert (evaluation.scorer, evaluation.win_rate.wins) == ("oracle", 6)
    assert (evaluation.all_correct.base.value, evaluation.all_correct.aligned.value) == (0, 1)
    assert evaluation.score.aligned.value == 1
    assert {"shape", "colour", "size", "background", "style"} <= set(evaluation.attributes)
