"""Length balance of RLAIF-V: pairs whose rejected response is much longer are left out until the means are alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmalign.data.table import RowTable
from mmalign.types import VLMPair

RATIOS = tuple(round(0.02 * step, 2) for step in range(50))


@dataclass(frozen=True)
class Balance:
    """``ratio``: pairs with (rejected - chosen) / rejected above it were left out. Means are of words, after that."""

    ratio: float
    kept: tuple[int, ...]
    chosen_words: float
    rejected_words: float


def balance_of(lengths: Sequence[tuple[int, int]]) -> Balance:
    """Which pairs (words of chosen, words of rejected) are kept.

    Of the ratios 0, 0.02, ..., 0.98 the first with the least |mean chosen - mean rejected| / mean rejected, over the
    pairs with (rejected - chosen) / rejected up to that ratio (get_pairs_filter_shorten.py of RLHF-V/RLAIF-V).
    ValueError for no pairs, or where no ratio leaves one.
    """
    best: tuple[float, Balance] | None = None
    for ratio in RATIOS:
        kept = [place for place, (chosen, rejected) in enumerate(lengths) if (rejected - chosen) / rejected <= ratio]
        if not kept:
            continue
        chosen = sum(lengths[place][0] for place in kept) / len(kept)
        rejected = sum(lengths[place][1] for place in kept) / len(kept)
        apart = abs(chosen - rejected) / rejected
        if best is None or apart < best[0]:
            best = apart, Balance(ratio, tuple(kept), chosen, rejected)
    if best is None:
        raise ValueError(
            "no pair is left by any length ratio: every rejected response is much longer than the chosen one"
        )
    return best[1]


def balanced(table: RowTable[VLMPair]) -> tuple[RowTable[VLMPair], Balance]:
    """``table`` without rows that :func:`balance_of` leaves out, or whose responses are equal; its report says so."""
    lengths, places = [], []
    for place, row in enumerate(table):
        if row.chosen.strip() != row.rejected.strip():
            lengths.append((len(row.chosen.split()), len(row.rejected.split())))
            places.append(place)
    found = balance_of(lengths)
    kept = table.select(places[place] for place in found.kept)
    note = (
        f"Balanced by length: {len(table) - len(kept)} of {len(table)} rows left out (length ratio {found.ratio:g}), "
        f"{found.chosen_words:.4g} words in chosen and {found.rejected_words:.4g} in rejected on average."
    )
    return replace(kept, report=replace(kept.report, notes=(*kept.report.notes, note))), found
