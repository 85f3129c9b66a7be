"""Rewards that ``mmalign train`` made (``family: reward``): a tuned CLIP's logit of text and picture, or its head's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from reward_models.clip_folder import HEAD, SETTINGS, ClipFolder, find_clip
from reward_models.clip_towers import transformers_towers
from reward_models.cosine import CosineReward
from reward_models.head_reward import HeadReward
from reward_models.heads import COSINE, SCALES, build_head
from reward_models.weights import FOLDER


def clip_reward(
    *,
    weights: str | Path | None = None,
    name: str = "clip-reward",
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 32,
    user: str | None = None,
) -> CosineReward | HeadReward:
    """The reward in ``weights``: what a run exported (``RUN`` or ``RUN/aligned``), or any CLIP of transformers.

    By default what lies in ``$MMALIGN_REWARDS/clip-reward``.

    ``name``: what its scores are called, where several are compared. The score is the logit that was trained: sigma of
    the difference of two is the probability that the first is preferred; ``scale`` says what other heads' scores are. A
    CLIP that was not trained as a reward gives its logits, which say no such thing. ``user``: whose taste, of a reward
    that was trained on rows with users.
    """
    found = find_clip(str(_default() if weights is None else weights), reward=name)
    told = found.settings
    towers = transformers_towers([found.config_file, found.weights], device=device, dtype=dtype)
    head = told.get("head", COSINE)
    reward = CosineReward(
        name=name,
        scale=SCALES[head["kind"]],
        version=str(told.get("version", "not trained as a reward")),
        licence=str(told.get("licence", "that of the model")),
        source=str(told.get("base", found.name)),
        towers=towers,
        logits=True,
        preprocess=found.preprocess(told.get("fit", "crop")),
        tokens=found.tokens(),
        batch_size=batch_size,
    )
    users = {user: number for number, user in enumerate(told.get("users", []))}
    if head["kind"] != "cosine":
        built = load_head(found, head).to(towers.device)
        return HeadReward(reward, built, head["kind"], told["objective"], users, user)
    if user is not None:
        raise ValueError(f"{found.folder} was trained without users, so user={user!r} would be ignored; leave it out")
    return reward


def load_head(found: ClipFolder, settings: Mapping[str, Any]) -> nn.Module:
    """The head that a run wrote beside its CLIP, frozen; ValueError where a weight is missing or of another shape."""
    config: Any = found.config
    head = build_head(config.projection_dim, settings)
    file = found.folder / HEAD
    if not file.is_file():
        raise ValueError(f"{found.folder} has no {HEAD}, which {SETTINGS} speaks of; export the run again")
    try:
        head.load_state_dict(load_file(file))
    except RuntimeError as error:
        raise ValueError(f"{file}: these are not the weights of the head that {SETTINGS} tells: {error}") from error
    return head.eval().requires_grad_(False)


def _default() -> Path:
    root = os.environ.get(FOLDER)
    folder = Path(root).expanduser() / "clip-reward" if root else None
    if folder is None or not folder.is_dir():
        raise ValueError(
            "reward 'clip-reward' is one that you trained (mmalign train playground/reward_bt): pass weights=RUN, the "
            f"run's folder, or put what it exported into ${FOLDER}/clip-reward"
        )
    return folder
