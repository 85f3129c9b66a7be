"""PickScore = exp(logit_scale) * cos(E_text(prompt), E_image), about 18 to 24; arXiv 2305.01569.

yuvalkirstain/PickScore (MIT), trainer/models/clip_model.py: CLIP ViT-H/14 tuned whole on Pick-a-Pic, a transformers
CLIPModel with the processor of laion/CLIP-ViT-H-14-laion2B-s32B-b79K. Some trainers divide by 26 to get about 0 to 1
(flow_grpo, pickscore_scorer.py:48); here the number is the published one.
"""

from pathlib import Path

from reward_models.clip_towers import FILES, transformers_towers
from reward_models.cosine import CosineReward
from reward_models.pixels import Preprocess
from reward_models.tokens import END, ClipTokens
from reward_models.weights import Source, locate

SOURCE = Source("yuvalkirstain/PickScore_v1", FILES, "none stated on the hub; the code is MIT")


def pickscore(
    *, weights: str | Path | None = None, device: str | None = None, dtype: str = "float32", batch_size: int = 32
) -> CosineReward:
    """PickScore v1 from a folder with ``config.json`` and weights."""
    towers = transformers_towers(locate(SOURCE, "pickscore", weights), device=device, dtype=dtype)
    return CosineReward(
        name="pickscore",
        scale="logit: exp(logit_scale) * cosine, about 18 to 24",
        version="v1",
        licence=SOURCE.licence,
        source=SOURCE.repository,
        towers=towers,
        logits=True,
        preprocess=Preprocess(towers.size, corner="transformers"),
        tokens=ClipTokens(cleaning="transformers", pad=END),
        batch_size=batch_size,
    )
