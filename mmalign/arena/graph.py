"""Which players the votes connect: who can be compared with whom, and whose strength rests on the ridge alone."""

import numpy as np
from numpy.typing import NDArray

from mmalign.arena.comparisons import SECOND, TIE, Comparisons


def tables(data: Comparisons) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(wins, ties), both [m, m]: ``wins[i, j]`` times i beat j, ``ties[i, j]`` ties of i and j (symmetric)."""
    m = len(data.players)
    second_won, tie = data.outcome == SECOND, data.outcome == TIE
    winner, loser = np.where(second_won, data.second, data.first), np.where(second_won, data.first, data.second)
    pairs = winner * m + loser
    wins = np.bincount(pairs[~tie], minlength=m * m).reshape(m, m)
    ties = np.bincount(pairs[tie], minlength=m * m).reshape(m, m)
    return wins, ties + ties.T


def components(links: NDArray) -> list[tuple[int, ...]]:
    """Groups of players that ``links`` [m, m] (direction does not matter) connects, the largest first."""
    reach = _reach((links + links.T) > 0)
    return sorted({tuple(np.flatnonzero(row).tolist()) for row in reach}, key=lambda group: (-len(group), group))


def strong_components(links: NDArray) -> list[tuple[int, ...]]:
    """Groups within which everybody reaches everybody along the directions of ``links``.

    Without a ridge the maximum likelihood exists for a group if and only if wins and ties (both ways) make it one
    strong component (Ford 1957).
    """
    reach = _reach(links > 0)
    return sorted(
        {tuple(np.flatnonzero(row).tolist()) for row in reach & reach.T}, key=lambda group: (-len(group), group)
    )


def _reach(links: NDArray[np.bool_]) -> NDArray[np.bool_]:
    reach = links | np.eye(len(links), dtype=bool)
    while True:
        further = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
        if (further == reach).all():
            return reach
        reach = further
