"""Heads that give every picture a score of its own: the plain cosine, a Gaussian one, and several dimensions."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

Texts = Float[Tensor, "batch width"]
Images = Float[Tensor, "batch k width"]
Logits = Float[Tensor, "batch k"]


def both(text: Texts, image: Images) -> Float[Tensor, "batch k inputs"]:
    """Text, picture and their product, each scaled to a mean square of about 1: [batch, k, 3 * width]."""
    text = text[:, None].expand_as(image)
    root = math.sqrt(image.shape[-1])
    return torch.cat([root * text, root * image, image.shape[-1] * text * image], dim=-1)


def perceptron(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Linear, ReLU, dropout, linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


class CosineHead(nn.Module):
    """score = exp(logit_scale) * cosine: HPSv2, PickScore. Nothing to learn beside the CLIP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """The logits as they are."""
        return {"score": logits}


class GaussianHead(nn.Module):
    """A score that knows how sure it is: N(mean, std^2), mean = logit + f_0, std = exp(f_1), f a perceptron.

    HPSv3 (arXiv 2508.03789): a head gives mean and log of the standard deviation, and the score is the mean. There f is
    3584-1024-16-2 on a language model's state; here it starts at zero (the CLIP's own logit, std 1) on both features.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float) -> None:
        super().__init__()
        self.network = perceptron(3 * width, hidden, 2, dropout)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """``score``: the mean; ``std``."""
        mean, log_std = self.network(both(text, image)).unbind(-1)
        return {"score": logits + mean, "std": log_std.exp()}


class MultiHead(nn.Module):
    """A score for each named dimension; the overall one is their mean with the weights of ``dimensions``.

    ``log_variance``, one number for each dimension, is for losses that weigh by uncertainty; the score has none of it.
    """

    def __init__(self, width: int, *, hidden: int, dropout: float, dimensions: Mapping[str, float]) -> None:
        super().__init__()
        self.names = tuple(dimensions)
        self.network = perceptron(3 * width, hidden, len(self.names), dropout)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))
        weights = torch.tensor([float(weight) for weight in dimensions.values()])
        self.register_buffer("weights", weights / weights.sum(), persistent=False)

    def forward(self, text: Texts, image: Images, logits: Logits, users: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """``score`` over all, ``parts`` [batch, k, dimensions], ``part_log_variance`` [batch, dimensions]."""
        parts = logits[..., None] + self.network(both(text, image))
        overall = (parts * self.get_buffer("weights")).sum(dim=-1)
        variance = self.log_variance.expand(len(text), -1)
        return {"score": overall, "parts": parts, "part_log_variance": variance}
