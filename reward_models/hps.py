"""HPSv2 and HPSv2.1 = cos(E_text(prompt), E_image), about 0.2 to 0.35; arXiv 2306.09341.

tgxs002/HPSv2 (Apache-2.0), hpsv2/img_score.py: an open_clip ViT-H-14 tuned on HPDv2. Its pictures are letterboxed, not
cut (factory.py:368, transform.py:26), so open_clip's own transform gives other scores for pictures that are not square.
Its tables print the cosine times 100. Scores of v2.0 and v2.1, and of different prompts, cannot be compared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward_models.clip_towers import open_clip_towers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.weights import Source, locate

SOURCES = {
    "2.0": Source("xswu/HPSv2", ("HPS_v2_compressed.pt",), "Apache-2.0"),
    "2.1": Source(
        "xswu/HPSv2",
        ("HPS_v2.1_compressed.pt",),
        "Apache-2.0",
        sha256={"HPS_v2.1_compressed.pt": "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"},
    ),
}
# open_clip's configuration ViT-H-14, which the file was trained from.
VIT_H_14: Mapping[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}


def hpsv2(
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    antialias: bool = True,
    architecture: Mapping[str, Any] = VIT_H_14,
    batch_size: int = 32,
) -> CosineReward:
    """HPSv2 (v2.0), the version that ``hpsv2.score`` uses unless told otherwise. Arguments as :func:`hpsv21`."""
    return _hps("hpsv2", "2.0", weights, device, dtype, antialias, architecture, batch_size)


def hpsv21(
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    antialias: bool = True,
    architecture: Mapping[str, Any] = VIT_H_14,
    batch_size: int = 32,
) -> CosineReward:
    """HPSv2.1.

    ``antialias``: the official code leaves it to torchvision, whose default for tensors became True in 0.17, so scores
    from before are those of ``antialias=False``. It is part of ``version``. ``architecture``: that of the file.
    """
    return _hps("hpsv2.1", "2.1", weights, device, dtype, antialias, architecture, batch_size)


def _hps(
    name: str,
    version: str,
    weights: str | Path | None,
    device: str | None,
    dtype: str,
    antialias: bool,
    architecture: Mapping[str, Any],
    batch_size: int,
) -> CosineReward:
    source = SOURCES[version]
    (file,) = locate(source, name, weights)
    towers = open_clip_towers(file, architecture, device=device, dtype=dtype)
    return CosineReward(
        name=name,
        scale="cosine, about 0.2 to 0.35; published tables print it times 100",
        version=f"{version}, antialias {'on' if antialias else 'off'}",
        licence=source.licence,
        source=f"{source.repository} {source.files[0]}",
        towers=towers,
        preprocess=Preprocess(towers.size, fit="letterbox", antialias=antialias),
        batch_size=batch_size,
    )
