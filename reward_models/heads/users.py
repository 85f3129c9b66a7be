"""Heads of models that know who asks: a mixture of scores, and PAL's mixtures of ideal points (arXiv 2406.08469)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from reward_models.heads.scores import Images, Logits, Texts, both, perceptron

FASTER = 50.0
"""How much faster weights of users and prototypes move than the rest: PAL's rates are 5e-3, and 1e-4 for the projector.
They are stored divided by it; Adam moves every number alike, so that their product moves that much more."""
LARGEST_SCALE = 100.0
FIRST_SCALE = 10.0
SPREAD = 0.1


class UserWeights(nn.Module):
    """softmax(w_user) over k groups; for users never seen (-1), the mean of everybody's weights."""

    def __init__(self, users: int, groups: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(SPREAD / FASTER * torch.randn(users, groups))

    def forward(self, users: Int[Tensor, " batch"]) -> Float[Tensor, "batch groups"]:
        """Weights [batch, groups], positive, with sum 1."""
        weights = torch.softmax(FASTER * self.logits, dim=-1)
        known = weights[users.clamp(min=0)]
        return torch.where((users >= 0)[:, None], known, weights.mean(dim=0))

    def with_another(self, logits: Float[Tensor, " groups"]) -> int:
        """Add a user with these weights before the softmax; gives its number."""
        self.logits = nn.Parameter(torch.cat([self.logits.detach(), logits[None] / FASTER]), requires_grad=False)
        return len(self.logits) - 1


class MixtureHead(nn.Module):
    """k scores of a picture, one for each group of users: score = sum_k w_k s_k, w of the user who asks."""

    def __init__(self, width: int, *, hidden: int, dropout: float, groups: int, users: int) -> None:
        super().__init__()
        self.network = perceptron(3 * width, hidden, groups, dropout)
        self.user_weights = UserWeights(users, groups)

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:
        """``score``, ``parts`` [batch, k, groups], ``part_weights`` [batch, groups]."""
        parts, weights = logits[..., None] + self.network(both(text, image)), self.user_weights(users)
        return {"score": (parts * weights[:, None]).sum(dim=-1), "parts": parts, "part_weights": weights}


class PalAHead(nn.Module):
    """PAL-A: score = -|f(x) - f(sum_k w_k p_k)|: minus the distance to the user's ideal point.

    f is a perceptron, x the features of prompt and picture, p_k prototypes in the space of x that all users share
    (learner.py:98). Trained with ``pal_a``'s hinge, so a difference of scores is no logit.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float, groups: int, users: int, features: int) -> None:
        super().__init__()
        self.network = perceptron(3 * width, hidden, features, dropout)
        self.prototypes = nn.Parameter(torch.randn(groups, 3 * width) / FASTER)
        self.user_weights = UserWeights(users, groups)

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """``score``, ``features`` [batch, k, features], ``ideal_point`` [batch, features]."""
        points = self.network(both(text, image))
        ideal = self.network(self.user_weights(users) @ (FASTER * self.prototypes))
        apart = torch.linalg.vector_norm(points - ideal[:, None], dim=-1)
        return {"score": -apart, "features": points, "ideal_point": ideal}


class PalBHead(nn.Module):
    """PAL-B: score = scale * cos(f(picture), sum_k w_k g_k(prompt)): prototypes depend on the prompt.

    f and every g_k are perceptrons (pal_rm_b/learner.py:129, userLearner.py:109); scale is learnt, at most 100.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float, groups: int, users: int, features: int) -> None:
        super().__init__()
        self.groups = groups
        self.network = perceptron(width, hidden, features, dropout)
        self.prototypes = perceptron(width, hidden, groups * features, dropout)
        self.user_weights = UserWeights(users, groups)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE) / FASTER))

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """``score``, ``features``, ``ideal_direction`` [batch, features], ``score_scale`` [batch]."""
        root = math.sqrt(text.shape[-1])
        points = self.network(root * image)
        prototypes = self.prototypes(root * text).unflatten(-1, (self.groups, -1))
        ideal = (self.user_weights(users)[..., None] * prototypes).sum(dim=1)
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE) / FASTER)
        scale = (FASTER * self.log_scale).exp()
        cosine = (normalize(points, dim=-1) * normalize(ideal, dim=-1)[:, None]).sum(dim=-1)
        told = {"features": points, "ideal_direction": ideal, "score_scale": scale.expand(len(text))}
        return {"score": scale * cosine, **told}
