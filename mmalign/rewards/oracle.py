"""The playground's gold label as a reward model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


class OracleReward:
    """reward = share of the caption's attributes that are right in the pixels, 0 to 1: the playground's gold label."""

    name = "oracle"
    scale = "share of correct attributes, 0 to 1"
    prompt_limit: int | None = None
    version = "1"
    licence = "Apache-2.0"
    source = "computed from the pixels; there are no weights"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Shares for pictures [batch] of playground captions [batch]; other prompts are a ValueError."""
        from mmalign.playground.oracle import judge

        return torch.tensor([judge(image, prompt).share for prompt, image in zip(prompts, images, strict=True)])
