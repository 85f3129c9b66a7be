"""The general preference model (arXiv 2410.02197): which of two pictures is preferred, without a score for each."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reward_models.heads.scores import Images, Logits, Texts, both, perceptron

OPPONENTS = 32

Features = Float[Tensor, "batch k features"]


class GeneralHead(nn.Module):
    """s(a over b) / tau, s = sum_m (a_2m b_2m+1 - a_2m+1 b_2m) of features f(prompt, picture).

    s(a over b) = -s(b over a), and a can beat b, b beat c, and c beat a. The logit of a preference is s / tau. A single
    picture has no score of its own: in a row of k pictures ``score`` is the mean logit against all of the row, so that
    in a pair the two scores differ by s / tau; alone, it is the mean logit against ``opponents``, pictures to train on.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float, features: int, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.network = perceptron(3 * width, hidden, features, dropout)
        self.register_buffer("opponents", torch.zeros(OPPONENTS, width))

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """``score`` against the row, or for k = 1 against the opponents; ``features`` [batch, k, features]."""
        points = self.network(both(text, image))
        others = points
        if image.shape[1] == 1:
            stored = self.get_buffer("opponents")
            others = self.network(both(text, stored.expand(len(text), *stored.shape)))
        return {"score": advantage(points, others.mean(dim=1, keepdim=True)) / self.tau, "features": points}


def advantage(points: Features, others: Float[Tensor, "batch any features"]) -> Float[Tensor, "batch k"]:
    """s(point over other), which is linear in both: against a mean it is the mean against each."""
    a, b = points.unflatten(-1, (-1, 2)), others.unflatten(-1, (-1, 2))
    return (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(dim=-1)
