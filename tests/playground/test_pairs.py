import io
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.playground.captions import caption
from mmalign.playground.oracle import judge
from mmalign.playground.pairs import make_pairs, oracle_reward, write_pickapic
from mmalign.playground.renderer import render
from mmalign.playground.scene import sample_scene


def samples(n: int = 40, k: int = 4) -> list[tuple[str, list[Image.Image]]]:
    """Prompts with one faithful picture among k - 1 of other scenes."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(n):
        drawn = [sample_scene(rng) for _ in range(k)]
        images = [Image.fromarray(render(scene)) for scene in drawn]
        made.append((caption(drawn[0]), images[1:] + images[:1]))
    return made


def share(row: dict, side: int) -> float:
    return judge(Image.open(io.BytesIO(row[f"jpg_{side}"])), row["caption"]).share


def test_the_better_picture_has_label_one():
    rows = make_pairs(samples())
    assert len(rows) == 40
    for row in rows:
        winner = 0 if row["label_0"] == 1 else 1
        assert row["label_0"] + row["label_1"] == 1
        assert share(row, winner) == 1.0
        assert share(row, winner) > share(row, 1 - winner)
        assert row["best_image_uid"] == row[f"image_{winner}_uid"]
        assert row["gold_label_0"] == row["label_0"]


def test_best_and_worst_of_k_are_paired():
    made = samples(10)
    for row, (prompt, images) in zip(make_pairs(made), made, strict=True):
        rewards = oracle_reward([prompt] * len(images), images)
        assert sorted((share(row, 0), share(row, 1))) == [min(rewards), max(rewards)]


def test_sides_are_mixed_and_seeded():
    made = samples()
    labels = [[row["label_0"] for row in make_pairs(made, seed=seed)] for seed in (0, 0, 1)]
    assert labels[0] == labels[1] != labels[2]
    assert 10 < sum(labels[0]) < 30


@pytest.mark.parametrize("flip_rate", [0.0, 0.3, 1.0])
def test_the_flip_rate_is_exact_and_leaves_the_pictures_alone(flip_rate: float):
    clean, flipped = make_pairs(samples(), seed=2), make_pairs(samples(), seed=2, flip_rate=flip_rate)
    differ = [one["label_0"] != other["label_0"] for one, other in zip(clean, flipped, strict=True)]
    assert sum(differ) == round(flip_rate * 40)
    for one, other in zip(clean, flipped, strict=True):
        assert (one["jpg_0"], one["gold_label_0"]) == (other["jpg_0"], other["gold_label_0"])
        assert other["best_image_uid"] == other["image_0_uid" if other["label_0"] == 1 else "image_1_uid"]


def test_soft_labels_are_the_sigmoid_of_the_gap():
    for row in make_pairs(samples(), soft=True, temperature=0.5, flip_rate=0.25):
        gap = share(row, 0) - share(row, 1)
        assert row["gold_label_0"] == pytest.approx(1 / (1 + math.exp(-gap / 0.5)), rel=1e-12)
        assert row["label_0"] + row["label_1"] == pytest.approx(1)
        assert row["label_0"] in (row["gold_label_0"], 1 - row["gold_label_0"])


def test_equal_and_close_pictures_give_no_row():
    made = samples(10)
    assert make_pairs([(prompt, images[-1:] * 3) for prompt, images in made]) == []
    few = make_pairs(made, min_gap=0.6)
    assert 0 < len(few) < 10
    assert all(abs(share(row, 0) - share(row, 1)) >= 0.6 for row in few)


def test_any_reward_can_rank():
    rows = make_pairs(samples(), lambda prompts, images: [float(np.asarray(image)[0, 0].sum()) for image in images])
    for row in rows:
        corner = [int(np.asarray(Image.open(io.BytesIO(row[f"jpg_{side}"])))[0, 0].sum()) for side in (0, 1)]
        assert (row["label_0"] == 1) == (corner[0] > corner[1])


def test_the_file_is_pick_a_pic(tmp_path):
    rows = make_pairs(samples(), flip_rate=0.1)
    write_pickapic(rows, tmp_path / "pairs.parquet")
    table = pq.read_table(tmp_path / "pairs.parquet")
    columns = {
        "are_different", "best_image_uid", "caption", "created_at", "has_label", "image_0_uid", "image_0_url",
        "image_1_uid", "image_1_url", "jpg_0", "jpg_1", "label_0", "label_1", "model_0", "model_1", "ranking_id",
        "user_id", "num_example_per_prompt", "gold_label_0",
    }  # fmt: skip
    assert set(table.column_names) == columns
    assert table.num_rows == 40
    first = table.to_pylist()[0]
    assert first["caption"] == rows[0]["caption"]
    assert first["jpg_0"] == rows[0]["jpg_0"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(first["jpg_1"]))).shape, (64, 64, 3))


def test_mistakes_are_told_together():
    with pytest.raises(ValueError, match=r"flip_rate=1.5: a share.*temperature=0: a number above 0.*min_gap=-1"):
        make_pairs(samples(1), flip_rate=1.5, temperature=0, min_gap=-1)
    with pytest.raises(ValueError, match="a pair needs at least 2"):
        make_pairs([("a large solid red circle on a white background", samples(1)[0][1][:1])])
    with pytest.raises(ValueError, match="finite numbers are needed"):
        make_pairs(samples(1), lambda prompts, images: [float("nan")] * len(images))
