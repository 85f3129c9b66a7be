"""Rows for reward models: what each kind promises, and that training reads it."""

from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmalign.data import decode, open_source
from mmalign.playground.oracle import judge
from mmalign.playground.reward_rows import (
    DIMENSIONS,
    KINDS,
    RowSettings,
    make_dimension_pairs,
    rendered,
    write_reward_rows,
)
from mmalign.playground.scene import BACKGROUNDS, training_prompts
from mmalign.playground.tastes import beats
from mmalign.training.config import DataConfig


def test_backgrounds_beat_each_other_in_a_circle() -> None:
    text = "a large solid red circle on a {} background"
    groups = rendered([text.format(name) for name in BACKGROUNDS], 1, np.random.default_rng(0), changed=0)
    pictures: list[Image.Image] = [images[0] for _, images in groups]
    table = np.array([[beats(a, b) for b in pictures] for a in pictures])
    assert np.array_equal(table, -table.T)
    assert (table > 0).sum(axis=1).tolist() == [2] * 6
    assert table[0, 1] == table[1, 2] == table[2, 4] == table[4, 0] == 1
    # No order of six gets more than 9 of the 12 contests right: an order by place does, and each of its turns.
    right = max(
        sum(table[a, b] > 0 for a, b in product(range(6), repeat=2) if (a - s) % 6 < (b - s) % 6) for s in range(6)
    )
    assert right == 9


def test_dimensions_say_which_picture_is_right_where_they_differ_and_somebody_looked() -> None:
    prompts = training_prompts("single", 40, 0)
    groups = rendered(prompts, 2, np.random.default_rng(0), changed=0.5)
    whole, some = (make_dimension_pairs(groups, labelled=share, seed=0) for share in (1.0, 0.5))
    assert len(whole) == len(some) > 20
    assert sum(len(row.extras) for row in whole) > sum(len(row.extras) for row in some) > 0
    for row in whole:
        right = [judge(decode(image), row.prompt).correct for image in row.images]
        assert sum(right[0].values()) > sum(right[1].values())
        assert row.extras == {name: float(right[0][name]) for name in DIMENSIONS if right[0][name] != right[1][name]}


def test_every_kind_is_one_that_training_reads(tmp_path: Path) -> None:
    for kind in KINDS:
        path = tmp_path / f"{kind}.parquet"
        write_reward_rows(kind, RowSettings(prompts=12, seed=1), path)
        canonical = kind in ("dimensions", "rankings")
        table = open_source(DataConfig(source="canonical" if canonical else "pickapic", path=str(path)))
        assert table.kind == ("ranking" if kind == "rankings" else "pair")
        assert len(table) > 3
    rows = pq.read_table(tmp_path / "users.parquet").to_pylist()
    assert {(row["user_id"] % 2, row["taste"]) for row in rows} == {(0, "bright"), (1, "dark")}
    with pytest.raises(ValueError, match="choose one of pairs, users, cycle"):
        write_reward_rows("votes", RowSettings(), tmp_path / "no.parquet")
