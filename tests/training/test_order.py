"""The order of rows depends on seed and step alone, and any split of the global batch deals the same rows."""

import pytest

from mmalign.training.order import TrainingOrder, held_out_keys, stable_hash
from mmalign.training.task import RowKey


def rows_of_step(step: int, *, batch_size: int, accumulation: int, processes: int, size: int = 10) -> list[RowKey]:
    keys: list[RowKey] = []
    for process in range(processes):
        order = TrainingOrder(
            size, 3, batch_size=batch_size, accumulation=accumulation, process=process, processes=processes
        )
        keys += [key for batch in order.micro_batches(step) for key in batch]
    return sorted(keys, key=lambda key: (key.index, key.seed))


@pytest.mark.parametrize("split", [(1, 8, 1), (2, 4, 1), (2, 2, 2), (4, 1, 2), (1, 1, 8)])
def test_every_split_of_the_global_batch_sees_the_same_rows(split: tuple[int, int, int]) -> None:
    batch_size, accumulation, processes = split
    for step in range(5):
        whole = rows_of_step(step, batch_size=8, accumulation=1, processes=1)
        dealt = rows_of_step(step, batch_size=batch_size, accumulation=accumulation, processes=processes)
        assert dealt == whole


def test_steps_walk_through_one_epoch_after_another() -> None:
    order = TrainingOrder(10, 3, batch_size=4, start=0, stop=5)
    visited = [key.index for batch in order for key in batch]
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10] != visited[10:]


def test_a_row_gets_new_randomness_in_every_epoch_and_with_every_seed() -> None:
    seeds = {
        key.seed
        for seed in (0, 1)
        for batch in TrainingOrder(10, seed, batch_size=10, stop=3)
        for key in batch
        if key.index == 4
    }
    assert len(seeds) == 6


def test_iteration_can_start_at_any_step() -> None:
    whole = list(TrainingOrder(7, 0, batch_size=2, accumulation=3, stop=6))
    assert list(TrainingOrder(7, 0, batch_size=2, accumulation=3, start=4, stop=6)) == whole[12:]


def test_held_out_rows_are_dealt_once_with_fixed_seeds() -> None:
    alone = [key for batch in held_out_keys(0, 7, 2) for key in batch]
    dealt = [key for process in (0, 1) for batch in held_out_keys(0, 7, 3, process, 2) for key in batch]
    assert sorted(dealt, key=lambda key: key.index) == alone
    assert [key.index for key in alone] == list(range(7))
    assert len({key.seed for key in alone}) == 7


def test_hashes_never_change() -> None:
    # Pinned: with another hash, a run could not be resumed by a newer version.
    assert stable_hash(0, "train", 2, 5) == 8206111961649058103
    assert stable_hash("a", "b") != stable_hash("ab")


def test_no_rows_is_an_error_that_names_the_settings() -> None:
    with pytest.raises(ValueError, match=r"no training rows; see data\.path"):
        TrainingOrder(0, 0, batch_size=1)
