"""Held-out prompts: none of their rows are trained on, and the choice is the same everywhere."""

from hashlib import sha256

import pytest
from making_data import FIXTURE, row

from mmalign.data import open_pickapic, split_by_prompt
from mmalign.training.config import DataConfig


@pytest.fixture
def table_of(write_shard):
    def build(captions: list[str]):
        path = write_shard([row(0) | {"caption": caption} for caption in captions])
        return open_pickapic(DataConfig(source="pickapic", path=str(path)))

    return build


def test_no_prompt_on_both_sides_and_no_row_lost(table_of):
    captions = [f"prompt {number % 20}" for number in range(100)]
    train, held_out = split_by_prompt(table_of(captions), 0.25, seed=1)
    assert not set(train.prompts) & set(held_out.prompts)
    assert len(set(held_out.prompts)) == 5
    assert sorted(train.sample_ids + held_out.sample_ids) == sorted(f"shard.parquet:{number}" for number in range(100))
    assert train.fingerprint != held_out.fingerprint


def test_case_and_spacing_do_not_make_a_new_prompt(table_of):
    table = table_of(["A cat", "a  cat ", "a dog", "a bird"])
    for seed in range(8):
        train, held_out = split_by_prompt(table, 0.4, seed)
        assert {"A cat", "a  cat "} <= set(train.prompts) or {"A cat", "a  cat "} <= set(held_out.prompts)


def test_the_choice_ignores_row_order_and_depends_on_the_seed(table_of):
    captions = [f"prompt {number}" for number in range(30)]
    chosen = set(split_by_prompt(table_of(captions), 0.2, seed=0)[1].prompts)
    assert chosen == set(split_by_prompt(table_of(captions[::-1]), 0.2, seed=0)[1].prompts)
    assert chosen != set(split_by_prompt(table_of(captions), 0.2, seed=1)[1].prompts)


def test_the_choice_is_the_same_in_every_process():
    """Retyped from its definition: SHA-256, which no process salts, of seed and prompt with their lengths."""
    table = open_pickapic(DataConfig(source="pickapic", path=str(FIXTURE)))
    digests = {prompt: sha256(f"1:7{len(prompt)}:{prompt}".encode()).hexdigest() for prompt in table.prompts}
    lowest = sorted(digests, key=lambda prompt: digests[prompt])[: round(0.3 * len(digests))]
    assert set(split_by_prompt(table, 0.3, 7)[1].prompts) == set(lowest)


@pytest.mark.parametrize(
    ("captions", "share", "message"),
    [
        (["a", "b"], 0.1, "of 2 distinct prompts leaves the held-out side empty; choose a share nearer one half"),
        (["a", "b"], 0.9, "leaves the training side empty"),
        (["a", "a"], 0.5, "of 1 distinct prompt leaves the held-out side empty; at least two"),
        (["a", "b"], 0.0, "needs a share between 0 and 1"),
        (["a", "b"], 1.0, "needs a share between 0 and 1"),
    ],
)
def test_empty_sides(table_of, captions, share, message):
    with pytest.raises(ValueError, match=message):
        split_by_prompt(table_of(captions), share)
