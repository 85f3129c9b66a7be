"""The examples of use without trainer and configuration do what they say."""

import math

import pytest
from batches import random_batch
from diffusers import DDPMScheduler
from PIL import Image
from research_example import align
from research_example_vlm import align as align_vlm
from research_example_vlm import batch_of
from tiny_models import tiny_unet_sdxl

from tests.vlm.tiny_processors import tiny_processor
from tests.vlm.tiny_vlms import tiny_vlm


def test_the_research_example_aligns_a_unet():
    losses = list(align(tiny_unet_sdxl(), DDPMScheduler(), [random_batch("sdxl", 4)] * 30, learning_rate=1e-4))
    assert losses[0] == pytest.approx(math.log(2))
    assert sum(losses[-5:]) / 5 < 0.9 * math.log(2)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_the_research_example_aligns_a_vision_language_model(kind):
    model = tiny_vlm(kind).float()
    pictures = {colour: Image.new("RGB", (40, 32), colour) for colour in ("red", "blue")}
    rows = [(picture, "What is it?", f"All {colour}.", "A cat.") for colour, picture in pictures.items()]
    losses = list(align_vlm(model, [batch_of(model, tiny_processor(kind), rows)] * 8, learning_rate=1e-3))
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < 0.9 * math.log(2)
