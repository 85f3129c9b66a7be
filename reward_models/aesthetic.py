"""LAION aesthetic predictor v2 = W5 W4 W3 W2 W1 e / |e| + b, about 1 to 10; the prompt plays no part.

christophschuhmann/improved-aesthetic-predictor (Apache-2.0), simple_inference.py: e is the embedding of OpenAI's CLIP
ViT-L/14; five linear layers with dropout and no activation between them (the ReLUs are commented out), so the whole is
affine. Weights: ``sac+logos+ava1-l14-linearMSE.pth`` in that repository.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from reward_models.clip_towers import ClipTowers, transformers_towers
from reward_models.clipscore import LARGE
from reward_models.cosine import check_lengths
from reward_models.pixels import Preprocess
from reward_models.weights import Source, build, fill, locate, read_state

HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD = Source(
    "christophschuhmann/improved-aesthetic-predictor",
    (HEAD_FILE,),
    "Apache-2.0",
    sha256={HEAD_FILE: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"},
    page=(
        "curl -L --create-dirs -o $MMALIGN_REWARDS/christophschuhmann--improved-aesthetic-predictor/"
        f"{HEAD_FILE} https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
        f"{HEAD_FILE.replace('+', '%2B')}"
    ),
)


def linear_head(width: int) -> nn.Sequential:
    """The five linear layers of the published head, with its dropouts, which count in training only."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )


class AestheticReward:
    """The aesthetic rating of a picture on its normalised CLIP embedding. Prompts are taken and not looked at."""

    name = "aesthetic"
    scale = "predicted mean rating, about 1 to 10"
    prompt_limit: int | None = None
    version = "v2, sac+logos+ava1, linear"
    licence = f"{HEAD.licence}; CLIP: {LARGE.licence}"
    source = f"{HEAD.repository} and {LARGE.repository}"

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        clip: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
    ) -> None:
        """``weights``: the head's file (or a folder of everything); ``clip``: folder of CLIP ViT-L/14."""
        (file,) = locate(HEAD, self.name, weights)
        if clip is None and weights is not None and (Path(weights) / LARGE.folder).is_dir():
            clip = weights
        self.towers: ClipTowers = transformers_towers(locate(LARGE, self.name, clip), device=device, dtype=dtype)
        self.preprocess = Preprocess(self.towers.size)
        self.batch_size = batch_size
        self.backbone = f"{self.towers.identity} {self.preprocess}"  # the same as that of a cosine on these towers
        width = self.towers.model.get_parameter("visual_projection.weight").shape[0]
        self.head = build(lambda: nn.ModuleDict({"layers": linear_head(width)}))
        fill(self.head, read_state(file), str(file), dtype="float32", device=self.towers.device)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Ratings of PIL pictures."""
        check_lengths(prompts, images)
        with torch.no_grad():
            return self.score_embedded(prompts, self.embed(images))

    def score_tensor(
        self, prompts: Sequence[str], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Ratings of pictures with values in 0..1; gradients reach the pixels."""
        check_lengths(prompts, images)
        return self.score_embedded(prompts, self.towers.embed_tensor(images, self.preprocess))

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch width"]:
        """CLIP image features, not normalised."""
        return self.towers.embed(images, self.preprocess, self.batch_size)

    def score_embedded(self, prompts: Sequence[str], embedded: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Ratings of embedded pictures."""
        check_lengths(prompts, embedded)
        if not prompts:
            return embedded.new_zeros(0)
        layers = self.head.get_submodule("layers")
        return layers(normalize(embedded, dim=-1))[:, 0]
