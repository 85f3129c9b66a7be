"""VLM pairs: the chosen side is right by gold, the rejected one wrong, and training reads what is written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.playground.captions import parse
from mmalign.playground.datasets import write_vlm_dataset
from mmalign.playground.descriptions import judge_description
from mmalign.playground.habits import sample_with_habits
from mmalign.playground.oracle import judge
from mmalign.playground.questions import DESCRIBE
from mmalign.playground.scene import is_held_out
from mmalign.playground.vlm_pairs import VLMPairSettings, as_habit_has_it, prior_pairs
from mmalign.training.config import DataConfig
from mmalign.types import VLMPair
from mmalign.vlm_data import open_source

SETTINGS = VLMPairSettings(rows=60, seed=1)


@pytest.fixture(scope="module")
def rows() -> list[VLMPair]:
    return prior_pairs(SETTINGS)


def test_chosen_descriptions_are_right_and_rejected_ones_say_what_is_usual(rows: list[VLMPair]) -> None:
    descriptions = [row for row in rows if DESCRIBE[0] in row.prompt_text]
    assert 25 < len(descriptions) < 55
    for row in descriptions:
        scene = parse(row.extras["scene"])
        assert not is_held_out(scene)
        assert not judge_description(row.chosen, scene).hallucinates
        assert judge_description(row.rejected, scene).hallucinates
        assert 1 <= len(judge_description(row.rejected, scene).wrong) <= 4


def test_pictures_show_the_chosen_and_the_retrieved_ones_the_rejected_description(rows: list[VLMPair]) -> None:
    for row in [row for row in rows if DESCRIBE[0] in row.prompt_text][:15]:
        assert judge(_open(row.images[0]), row.chosen).all_correct
        assert not judge(_open(row.images[0]), row.rejected).all_correct
        assert judge(_open(row.branch_images["retrieved"][0]), row.rejected).all_correct


def test_answers_are_right_and_wrong(rows: list[VLMPair]) -> None:
    questions = [row for row in rows if DESCRIBE[0] not in row.prompt_text]
    assert len(questions) > 8
    for row in questions:
        assert row.chosen != row.rejected
        assert (row.chosen in ("yes", "no")) == (row.rejected in ("yes", "no"))


def test_any_question_is_answered_right_and_wrong() -> None:
    rows = prior_pairs(VLMPairSettings(rows=60, follow=0, question_share=0.9, any_question=True, seed=2))
    questions = [row for row in rows if DESCRIBE[0] not in row.prompt_text]
    assert len(questions) > 40
    assert len({row.chosen for row in questions}) > 15
    for row in questions:
        assert row.chosen != row.rejected
        assert (row.chosen in ("yes", "no")) == (row.rejected in ("yes", "no"))
        assert not row.branch_images
    described = [row for row in rows if DESCRIBE[0] in row.prompt_text]
    assert all("retrieved" in row.branch_images for row in described)


def test_a_scene_that_is_all_habit_gives_nothing_to_reject() -> None:
    rng = np.random.default_rng(0)
    scene = sample_with_habits(rng, "single", follow=1, held_out=None)
    assert as_habit_has_it(scene, rng) is None


def test_what_is_written_is_read_by_training(rows: list[VLMPair], tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    assert write_vlm_dataset("vlm", SETTINGS, path) == 60
    table = open_source(DataConfig(source="vlm_canonical", path=str(path)))
    assert table.kind == "vlm_pair"
    assert [(row.chosen, row.rejected) for row in table] == [(row.chosen, row.rejected) for row in rows]
    with pytest.raises(ValueError, match="vlm-own"):
        write_vlm_dataset("captions", SETTINGS, path)


def _open(image) -> Image.Image:
    import io

    return Image.open(io.BytesIO(image.read())).convert("RGB")
