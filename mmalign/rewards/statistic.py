"""What can be counted in the pixels, as numbers and as rewards: narrow proxies, and bounds for composite rewards."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

STATISTICS = ("saturation", "contrast", "sharpness", "brightness")


class StatisticReward:
    """reward = one of ``STATISTICS`` of the picture, 0 to 1, whatever the prompt: nobody's preference.

    What a generator gains under it is over-optimisation, which a monitor should see; as a constraint
    (``at_least``) it keeps a composite reward from greying or blurring pictures.
    """

    prompt_limit: int | None = None
    version = "1"
    licence = "Apache-2.0"
    source = "computed from the pixels; there are no weights"

    def __init__(self, name: str) -> None:
        self.name, self.scale = name, f"{name} of the picture, 0 to 1"

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """The statistic of each picture."""
        return torch.tensor([picture_statistics(image)[self.name] for _, image in zip(prompts, images, strict=True)])


def picture_statistics(image: Image.Image) -> dict[str, float]:
    """``saturation``, ``contrast``, ``sharpness``, ``brightness`` of one picture, each in [0, 1] and higher = more.

    Saturation: mean of max - min over channels. Brightness: mean luma (ITU-R BT.601). Contrast: its standard
    deviation. Sharpness: mean absolute difference of luma between neighbouring pixels.
    """
    rgb = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    steps = [np.abs(np.diff(luma, axis=axis)) for axis in (0, 1)]
    sharpness = float(np.mean([step.mean() for step in steps if step.size] or [0.0]))
    return {
        "saturation": float((rgb.max(axis=-1) - rgb.min(axis=-1)).mean()),
        "contrast": float(luma.std()),
        "sharpness": sharpness,
        "brightness": float(luma.mean()),
    }
