"""CLIPScore = 2.5 * max(cos(E_text("A photo depicts " + prompt), E_image), 0), arXiv 2104.08718, and the plain cosine.

jmhessel/clipscore, clipscore.py (MIT): CLIP ViT-B/32, prefix in line 67, weight 2.5 in line 135. Other codes call other
numbers "CLIP score": no prefix, another CLIP, or times 100; those are ``clip-cosine`` here, never compared with this.
"""

from pathlib import Path

from torch import Tensor

from reward_models.clip_towers import FILES, transformers_towers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.weights import Source, locate

SOURCE = Source(
    "openai/clip-vit-base-patch32",
    FILES,
    "MIT",
    sha256={"pytorch_model.bin": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"},
)
LARGE = Source(
    "openai/clip-vit-large-patch14",
    FILES,
    "MIT",
    sha256={
        "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "pytorch_model.bin": "f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3",
    },
)
PREFIX = "A photo depicts "


def clipscore(
    *, weights: str | Path | None = None, device: str | None = None, dtype: str = "float32", batch_size: int = 32
) -> CosineReward:
    """CLIPScore on ViT-B/32. The official code runs fp16 on a GPU and fp32 on a CPU, and warns that they differ."""
    towers = transformers_towers(locate(SOURCE, "clipscore", weights), device=device, dtype=dtype)
    return CosineReward(
        name="clipscore",
        scale="2.5 * max(cosine, 0), about 0.5 to 0.9",
        version="ViT-B/32, official prefix",
        licence=SOURCE.licence,
        source=SOURCE.repository,
        towers=towers,
        outcome=_official,
        preprocess=Preprocess(towers.size),
        prefix=PREFIX,
        batch_size=batch_size,
    )


def clip_cosine(
    *, weights: str | Path | None = None, device: str | None = None, dtype: str = "float32", batch_size: int = 32
) -> CosineReward:
    """The plain cosine of prompt and picture under OpenAI's ViT-B/32: no prefix, no factor, may be negative."""
    return _cosine("clip-cosine", "ViT-B/32, no prefix", SOURCE, weights, device, dtype, batch_size)


def clip_cosine_large(
    *, weights: str | Path | None = None, device: str | None = None, dtype: str = "float32", batch_size: int = 32
) -> CosineReward:
    """The plain cosine under OpenAI's ViT-L/14, ImageReward's CLIP baseline (ImageReward/models/CLIPScore.py:33)."""
    return _cosine("clip-cosine-l14", "ViT-L/14, no prefix", LARGE, weights, device, dtype, batch_size)


def _cosine(
    name: str,
    version: str,
    source: Source,
    weights: str | Path | None,
    device: str | None,
    dtype: str,
    batch_size: int,
) -> CosineReward:
    towers = transformers_towers(locate(source, name, weights), device=device, dtype=dtype)
    return CosineReward(
        name=name,
        scale="cosine, about 0.15 to 0.4",
        version=version,
        licence=source.licence,
        source=source.repository,
        towers=towers,
        preprocess=Preprocess(towers.size),
        batch_size=batch_size,
    )


def _official(cosine: Tensor) -> Tensor:
    return 2.5 * cosine.clamp(min=0)
