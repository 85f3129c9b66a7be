"""Numbers of a few pictures that fall or explode when a generator collapses or is over-optimised."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmalign.evaluation.diversity import pixel_distances
from mmalign.rewards.statistic import picture_statistics


def picture_measures(images: Sequence[Image.Image]) -> dict[str, float]:
    """Means of ``saturation``, ``contrast`` and ``sharpness`` (see ``picture_statistics``), and ``diversity``.

    Diversity, the mean distance between pictures (root mean square over pixels, see ``pixel_distances``), needs two
    pictures and is left out for one. Gray pictures have a saturation of 0; over-optimised ones often have garish
    colours, more contrast and more texture.
    """
    each = [picture_statistics(image) for image in images]
    measures = {name: float(np.mean([of[name] for of in each])) for name in ("saturation", "contrast", "sharpness")}
    if len(images) > 1:
        count = len(images)
        measures["diversity"] = float(pixel_distances(images).sum() / (count * (count - 1)))
    return measures
