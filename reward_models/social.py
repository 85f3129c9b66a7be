"""Social Reward = cos(E_text(prompt), E_image), how likely people pick up a picture and edit it; arXiv 2402.09872.

Picsart-AI-Research/Social-Reward: OpenAI's CLIP ViT-L/14, its last blocks tuned with a triplet loss on unit features.
The repository trains and validates and publishes no weights, so ``weights=PATH`` is needed: the ``state_dict`` of a
model of OpenAI's clip package, which that training saves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_models.clip_towers import open_clip_towers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.weights import Source, locate

SOURCE = Source(
    "Picsart-AI-Research/Social-Reward",
    ("social_reward.pt",),
    "none stated",
    page="its authors publish no weights; train with their repository and pass the state_dict as weights=PATH",
)
# open_clip's configuration ViT-L-14-quickgelu, whose keys are those of OpenAI's clip package.
VIT_L_14: Mapping[str, Any] = {
    "embed_dim": 768,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
}


def social_reward(
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    architecture: Mapping[str, Any] = VIT_L_14,
    batch_size: int = 32,
) -> CosineReward:
    """Social Reward from a ``state_dict`` of your own training; ``architecture``: that of the file."""
    (file,) = locate(SOURCE, "social-reward", weights)
    towers = open_clip_towers(file, architecture, device=device, dtype=dtype)
    return CosineReward(
        name="social-reward",
        scale="cosine",
        version=f"weights {file.name}",
        licence=SOURCE.licence,
        source=SOURCE.repository,
        towers=towers,
        preprocess=Preprocess(towers.size),
        batch_size=batch_size,
    )
