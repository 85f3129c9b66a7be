"""The loss core: pure functions from scores to one loss per row, and the objective that combines them.

To add a loss: write one function, import it here and give it one line in ``LOSSES``. Its tensor arguments are named
after what a term's branches offer (``chosen_logratio``, ``rejected_logp``, ``preference``, ...) and its keyword-only
arguments are its config keys. Packages add losses through the entry-point group ``mmalign.losses``.
"""

from collections.abc import Callable

from torch import Tensor

from mmalign.losses.listwise import lambda_rank, listnet, plackett_luce, pro, ranklist
from mmalign.losses.pairwise import discopop, dpo, dpo_positive, exo, f_dpo, hinge, ipo, robust_dpo
from mmalign.losses.pairwise_anchored import (
    anchor,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    dspo,
    nca,
    sppo,
)
from mmalign.losses.pairwise_labelled import irepo, margin_dpo, modpo, smoothed_dpo, soft_dpo
from mmalign.losses.reference_free import asft, cpo, mapo, orpo, sft, simpo, triple
from mmalign.losses.unpaired import bco, diffusion_kto, kto
from mmalign.losses.visual import chip, v_dpo

LOSSES: dict[str, Callable[..., Tensor]] = {
    # pairwise, with reference
    "dpo": dpo,
    "soft_dpo": soft_dpo,
    "smoothed_dpo": smoothed_dpo,
    "robust_dpo": robust_dpo,
    "ipo": ipo,
    "hinge": hinge,
    "f_dpo": f_dpo,
    "exo": exo,
    "nca": nca,
    "bco_pair": bco_pair,
    "sppo": sppo,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "discopop": discopop,
    "dpo_positive": dpo_positive,
    "anchor": anchor,
    "dspo": dspo,
    "margin_dpo": margin_dpo,
    "modpo": modpo,
    "irepo": irepo,
    # pairwise, with the same response and other pictures
    "chip": chip,
    "v_dpo": v_dpo,
    # reference-free
    "sft": sft,
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
    "asft": asft,
    "mapo": mapo,
    "triple": triple,
    # listwise
    "plackett_luce": plackett_luce,
    "listnet": listnet,
    "lambda_rank": lambda_rank,
    "ranklist": ranklist,
    "pro": pro,
    # unpaired
    "kto": kto,
    "diffusion_kto": diffusion_kto,
    "bco": bco,
}

# Losses whose rows depend on each other, and when: there a batch of two is not two batches of one.
BATCH_COUPLED: dict[str, str] = {
    "aot": "always: it sorts the batch",
    "aot_unpaired": "always: it sorts the batch",
    "bco_pair": "with shift: running",
    "bco": "with shift: running",
    "kto": "with kl: running",
    "diffusion_kto": "with kl: running",
}

# Last, because the objective reads LOSSES.
from mmalign.losses.describe import LossDescription as LossDescription  # noqa: E402
from mmalign.losses.describe import describe as describe  # noqa: E402
from mmalign.losses.objective import Objective as Objective  # noqa: E402
from mmalign.losses.objective import ObjectiveOutput as ObjectiveOutput  # noqa: E402
