"""What stands on a CLIP's two features and gives scores: heads of reward models that say more than one cosine.

A head is an ``nn.Module`` that is called with ``text`` [batch, width] and ``image`` [batch, k, width], both of length
1, ``logits`` [batch, k] = exp(logit_scale) * cosine, and ``users`` [batch], their numbers (-1: nobody in particular).
It gives tensors by name: ``score`` [batch, k] always; per picture ``std``, ``features``, ``parts``; per row
``ideal_point``, ``ideal_direction``, ``part_weights``, ``score_scale``, ``part_log_variance``, as its losses ask.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reward_models.heads.general import GeneralHead
from reward_models.heads.scores import CosineHead, GaussianHead, MultiHead
from reward_models.heads.users import MixtureHead, PalAHead, PalBHead

HEADS: Mapping[str, Callable[..., nn.Module]] = {
    "cosine": CosineHead,
    "gaussian": GaussianHead,
    "multi": MultiHead,
    "mixture": MixtureHead,
    "pal_a": PalAHead,
    "pal_b": PalBHead,
    "gpm": GeneralHead,
}
COSINE: Mapping[str, Any] = {"kind": "cosine"}
# Kind -> tensors that its losses may ask for beside the two scores; a term has to ask for those in the second entry,
# without which a part of the head would not be trained.
OFFERS: Mapping[str, frozenset[str]] = {
    "cosine": frozenset(),
    "gaussian": frozenset({"chosen_std", "rejected_std"}),
    "multi": frozenset({"chosen_parts", "rejected_parts", "part_preference", "part_log_variance"}),
    "mixture": frozenset({"chosen_parts", "rejected_parts", "part_weights"}),
    "pal_a": frozenset({"chosen_features", "rejected_features", "ideal_point"}),
    "pal_b": frozenset({"chosen_features", "rejected_features", "ideal_direction", "score_scale"}),
    "gpm": frozenset({"chosen_features", "rejected_features"}),
}
# Offered for losses that weigh by it; a loss without it trains the rest of the head all the same.
OPTIONAL = frozenset({"part_log_variance"})
NEEDS: Mapping[str, str] = {"gaussian": "chosen_std", "multi": "part_preference"}
READ_LOGITS = ("cosine", "gaussian", "multi", "mixture")
OF_USERS = ("mixture", "pal_a", "pal_b")
PER_PICTURE = ("std", "features", "parts")
_SIGMA = "sigma of a difference is a probability of preference"
# Kind -> what its scores are, in words.
SCALES: Mapping[str, str] = {
    "cosine": f"logit: exp(logit_scale) * cosine; {_SIGMA}",
    "gaussian": "mean of a Gaussian logit; its standard deviation says how sure the model is",
    "multi": f"mean of the dimensions' logits with the weights of the run; {_SIGMA} in one dimension",
    "mixture": "mean logit over groups of users, with the weights of the user who asks",
    "pal_a": "minus the distance to the user's ideal point, which is no logit",
    "pal_b": f"logit: scale * cosine of the picture and the user's ideal point; {_SIGMA}",
    "gpm": "mean logit of being preferred to pictures of the training data; to compare two, use compare",
}


def build_head(width: int, settings: Mapping[str, Any]) -> nn.Module:
    """The head of ``settings``: ``kind`` (a key of ``HEADS``) and its keywords, on features of ``width``."""
    given = dict(settings)
    return HEADS[given.pop("kind")](width, **given)


def nobody(rows: int, device: torch.device) -> Tensor:
    """[rows] of -1: no user in particular."""
    return torch.full((rows,), -1, dtype=torch.long, device=device)
