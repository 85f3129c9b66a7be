"""Several scores from one frozen encoder: ridge regression on its features, arXiv 2510.00766 (MULTI-TAP, stage 2).

W = (X'X + penalty * n * I)^-1 X'Y on standardised features X [n, d] and centred targets Y [n, k], with the intercept
not penalised; score = (features - mean) / std @ W[:, objective] + intercept. In float64, in closed form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmalign.caches.files import written_whole
from mmalign.rewards import EmbeddingReward, find_reward
from reward_models.cosine import check_lengths


@dataclass(frozen=True)
class RidgeHead:
    """``weight`` [features, objectives] and ``bias`` [objectives] on raw features; ``objectives`` are their names."""

    weight: Float[Tensor, "features objectives"]
    bias: Float[Tensor, " objectives"]
    objectives: tuple[str, ...]
    backbone: str = ""

    def __call__(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch objectives"]:
        """Predicted targets, float32."""
        return (features.double() @ self.weight.to(features.device) + self.bias.to(features.device)).float()

    def save(self, path: Path) -> None:
        """One .safetensors file, written whole or not at all."""
        about = {"objectives": "\n".join(self.objectives), "backbone": self.backbone}
        with written_whole(path) as partial:
            save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, partial, metadata=about)


def load_ridge(path: Path) -> RidgeHead:
    """The head in a file of :meth:`RidgeHead.save`."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; fit a head with reward_models.ridge.fit_ridge and save it")
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if "objectives" not in about or set(file.keys()) != {"weight", "bias"}:
            raise ValueError(f"{path} is no ridge head: it needs weight, bias and the names of its objectives")
        return RidgeHead(
            file.get_tensor("weight"),
            file.get_tensor("bias"),
            tuple(about["objectives"].split("\n")),
            about["backbone"],
        )


def fit_ridge(
    features: Float[Tensor, "rows features"],
    targets: Mapping[str, Float[Tensor, " rows"]],
    *,
    penalty: float = 1e-2,
    backbone: str = "",
) -> RidgeHead:
    """The head that minimises mean squared error + ``penalty`` * |W|^2 on standardised features, for each target.

    Features that never change get no weight. ValueError for no targets, other lengths, values that are not finite.
    """
    if not targets or any(len(values) != len(features) for values in targets.values()):
        lengths = {name: len(values) for name, values in targets.items()}
        raise ValueError(f"ridge needs a target for each of the {len(features)} rows, got {lengths or 'no targets'}")
    if penalty <= 0:
        raise ValueError(
            f"penalty={penalty:g} must be positive: with fewer rows than features there is no other answer"
        )
    inputs = features.detach().double().cpu()
    outputs = torch.stack([values.detach().double().cpu() for values in targets.values()], dim=-1)
    if not (inputs.isfinite().all() and outputs.isfinite().all()):
        raise ValueError("features and targets must be finite numbers; leave out rows without a score")
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    scaled, centre = (inputs - mean) / std, outputs.mean(0)
    gram = scaled.T @ scaled / len(scaled) + penalty * torch.eye(scaled.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, scaled.T @ (outputs - centre) / len(scaled)) / std[:, None]
    return RidgeHead(weight, centre - mean @ weight, tuple(targets), backbone)


class RidgeReward:
    """One objective of a ridge head as a reward model. The prompt plays no part: features are those of the picture."""

    prompt_limit: int | None = None

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        objective: str | None = None,
        encoder: str = "clip-cosine-l14",
        device: str | None = None,
        dtype: str = "float32",
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        """``weights``: file of a head; ``objective``: which of its scores, the first by default.

        ``encoder``: the reward whose embeddings the head was fitted on, built with ``encoder_options``.
        """
        if weights is None:
            raise ValueError("reward 'ridge' needs weights=FILE, a head of reward_models.ridge.fit_ridge")
        path = Path(weights).expanduser()
        self.head = load_ridge(path)
        self.objective = objective or self.head.objectives[0]
        if self.objective not in self.head.objectives:
            raise ValueError(f"{path} has no objective {objective!r}; it has {', '.join(self.head.objectives)}")
        if self.head.backbone not in ("", encoder):
            raise ValueError(f"{path} was fitted on {self.head.backbone}, not on {encoder}; give encoder=")
        found = find_reward(encoder, device=device, dtype=dtype, **(encoder_options or {}))
        if not isinstance(found, EmbeddingReward):
            raise ValueError(f"encoder={encoder!r} has no embeddings; choose a reward that has embed(images)")
        self.encoder, self.backbone = found, found.backbone
        self.name = "ridge" if objective is None else f"ridge-{objective}"
        self.scale, self.version = f"predicted {self.objective}", f"{path.name} on {encoder}"
        self.licence, self.source = f"yours; encoder: {found.licence}", f"{path} on {found.source}"  # type: ignore[attr-defined]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Predicted scores of PIL pictures."""
        check_lengths(prompts, images)
        return self.score_embedded(prompts, self.embed(images))

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch width"]:
        """The encoder's features."""
        return self.encoder.embed(images)

    def score_embedded(self, prompts: Sequence[str], embedded: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Predicted scores of embedded pictures."""
        check_lengths(prompts, embedded)
        if not prompts:
            return embedded.new_zeros(0)
        return self.head(embedded)[:, self.head.objectives.index(self.objective)]
