"""Rewards that ``mmalign train`` made (``family: reward``): exp(logit_scale) * cos(text, picture) of a tuned CLIP."""

import os
from pathlib import Path

from reward_models.clip_folder import find_clip
from reward_models.clip_towers import transformers_towers
from reward_models.cosine import CosineReward
from reward_models.weights import FOLDER


def clip_reward(
    *,
    weights: str | Path | None = None,
    name: str = "clip-reward",
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
) -> CosineReward:
    """The reward in ``weights``: what a run exported (``RUN`` or ``RUN/aligned``), or any CLIP of transformers.

    By default what lies in ``$MMALIGN_REWARDS/clip-reward``.

    ``name``: what its scores are called, where several are compared. The score is the logit that was trained: sigma of
    the difference of two is the probability that the first is preferred. A CLIP that was not trained as a reward gives
    its logits, which say no such thing.
    """
    found = find_clip(str(_default() if weights is None else weights), reward=name)
    told = found.settings
    towers = transformers_towers([found.config_file, found.weights], device=device, dtype=dtype)
    return CosineReward(
        name=name,
        scale="logit: exp(logit_scale) * cosine; sigma of a difference is a probability of preference",
        version=str(told.get("version", "not trained as a reward")),
        licence=str(told.get("licence", "that of the model")),
        source=str(told.get("base", found.name)),
        towers=towers,
        logits=True,
        preprocess=found.preprocess(told.get("fit", "crop")),
        tokens=found.tokens(),
        batch_size=batch_size,
    )


def _default() -> Path:
    root = os.environ.get(FOLDER)
    folder = Path(root).expanduser() / "clip-reward" if root else None
    if folder is None or not folder.is_dir():
        raise ValueError(
            "reward 'clip-reward' is one that you trained (mmalign train playground/reward_bt): pass weights=RUN, the "
            f"run's folder, or put what it exported into ${FOLDER}/clip-reward"
        )
    return folder
