"""The loss core: pure functions from scores to one loss per row, and the objective that combines them.

To add a loss: write one function, import it here and give it one line in ``LOSSES``. Its tensor arguments are named
after what a term's branches offer (``chosen_logratio``, ``rejected_logp``, ``preference``, ...) and its keyword-only
arguments are its config keys. Packages add losses through the entry-point group ``mmalign.losses``.
"""

from collections.abc import Callable

from torch import Tensor

from mmalign.losses.pairwise import dpo, robust_dpo
from mmalign.losses.reference_free import mapo, sft

LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo,
    "robust_dpo": robust_dpo,
    "sft": sft,
    "mapo": mapo,
}

BATCH_COUPLED: frozenset[str] = frozenset({"aot", "aot_unpaired"})
"""Losses whose rows depend on each other, so a batch of two is not two batches of one."""

# Last, because the objective reads LOSSES.
from mmalign.losses.objective import Objective as Objective  # noqa: E402
from mmalign.losses.objective import ObjectiveOutput as ObjectiveOutput  # noqa: E402
