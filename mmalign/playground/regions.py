"""Connected regions of a small mask, by joining the runs of neighbouring rows."""

from collections import defaultdict

import numpy as np


def find_regions(mask: np.ndarray, min_area: int = 1) -> list[np.ndarray]:
    """Masks of the 4-connected regions with at least ``min_area`` pixels, the largest first.

    ``mask`` is bool [height, width]; so is each region. Regions of equal area keep their reading order.
    """
    rows, starts, ends = _runs(mask)
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run in range(len(rows)):
        # Runs are in reading order: skip those that end before this one can touch any of them.
        while (rows[above], ends[above]) <= (rows[run] - 1, starts[run]):
            above += 1
        other = above
        while rows[other] == rows[run] - 1 and starts[other] < ends[run]:
            parent[root(run)] = root(other)
            other += 1
    members = defaultdict(list)
    for run in range(len(rows)):
        members[root(run)].append(run)
    return _paint(mask.shape, rows, starts, ends, list(members.values()), min_area)


def _runs(mask: np.ndarray) -> tuple[list[int], list[int], list[int]]:
    """Row, first column and column after the last of every horizontal run, in reading order."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    return rows.tolist(), starts.tolist(), ends.tolist()


def _paint(
    shape: tuple[int, ...], rows: list[int], starts: list[int], ends: list[int], groups: list[list[int]], min_area: int
) -> list[np.ndarray]:
    sized = [(sum(ends[run] - starts[run] for run in group), group) for group in groups]
    regions = []
    for _, group in sorted((item for item in sized if item[0] >= min_area), key=lambda item: -item[0]):
        region = np.zeros(shape, bool)
        for run in group:
            region[rows[run], starts[run] : ends[run]] = True
        regions.append(region)
    return regions
