"""The example that the README shows does what it says."""

import math

import pytest
from batches import random_batch
from diffusers import DDPMScheduler
from research_example import align
from tiny_models import tiny_unet_sdxl


def test_the_research_example_aligns_a_unet():
    losses = list(align(tiny_unet_sdxl(), DDPMScheduler(), [random_batch("sdxl", 4)] * 30, learning_rate=1e-4))
    assert losses[0] == pytest.approx(math.log(2))
    assert sum(losses[-5:]) / 5 < 0.9 * math.log(2)
