"""Pixels of a pair: one flip and one relative crop for both sides, and time ids as SDXL was trained with them."""

import io

import numpy as np
import pytest
import torch
from making_data import FIXTURE, encoded
from PIL import Image

from mmalign.data import open_source, prepare_pair
from mmalign.training.config import DataConfig
from mmalign.types import ImageBytes, PreferencePair


def ramp(width: int, height: int) -> Image.Image:
    """Red grows with x, green with y, so that a pixel tells where it comes from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def pair(chosen: Image.Image, rejected: Image.Image | None = None) -> PreferencePair:
    sides = [ImageBytes("here", data=encoded(side)) for side in (chosen, rejected or chosen)]
    return PreferencePair("s", "p", *sides)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_values_and_shape():
    picture = Image.fromarray(np.array([[[0, 255, 51]]], dtype=np.uint8)).resize((8, 8), Image.Resampling.NEAREST)
    prepared = prepare_pair(pair(picture), resolution=8)
    assert prepared.chosen.shape == (3, 8, 8)
    assert prepared.chosen.dtype == torch.float32
    assert prepared.chosen[:, 0, 0].tolist() == pytest.approx([-1.0, 1.0, 51 / 127.5 - 1])
    assert prepared.chosen.is_contiguous()


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        # (width, height) -> height, width, crop top, crop left, resolution, resolution
        ((100, 100), 100, [100, 100, 0, 0, 100, 100]),
        ((160, 100), 100, [100, 160, 0, 30, 100, 100]),
        ((100, 160), 100, [160, 100, 30, 0, 100, 100]),
        ((160, 100), 50, [100, 160, 0, 15, 50, 50]),
        ((103, 100), 100, [100, 103, 0, 2, 100, 100]),  # 1.5 rounds to 2 and 0.5 to 0, as in torchvision
        ((101, 100), 100, [100, 101, 0, 0, 100, 100]),
        ((451, 300), 512, [300, 451, 0, 128, 512, 512]),  # 451 * 512 / 300 = 769.7 is cut to 769; 257 / 2 rounds to 128
    ],
)
def test_time_ids_of_a_centre_crop(size, resolution, expected):
    prepared = prepare_pair(pair(Image.new("RGB", size)), resolution=resolution)
    assert prepared.time_ids["chosen"].tolist() == expected
    assert prepared.time_ids["chosen"].dtype == torch.float32


def test_centre_crop_pixels():
    prepared = prepare_pair(pair(ramp(160, 100)), resolution=100)
    pixels = (prepared.chosen + 1) * 127.5
    assert torch.allclose(pixels[0, 0], torch.arange(30.0, 130.0), atol=1e-3)
    assert torch.allclose(pixels[1, :, 0], torch.arange(100.0), atol=1e-3)


def test_resizing_keeps_the_aspect_ratio():
    """Half of 160 x 100 is 80 x 50, of which the middle 50 columns show the unscaled 30..130."""
    prepared = prepare_pair(pair(ramp(160, 100)), resolution=50)
    pixels = (prepared.chosen + 1) * 127.5
    assert torch.allclose(pixels[0, 25], torch.arange(30.5, 130.0, 2), atol=1.01)
    assert torch.allclose(pixels[1, 2:-2, 25], torch.arange(4.5, 96.0, 2), atol=1.01)


def test_resizing_down_does_not_alias():
    """Stripes one pixel wide average to grey; taking every eighth pixel would give black or white."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    prepared = prepare_pair(pair(Image.fromarray(stripes)), resolution=32)
    assert prepared.chosen.abs().max() < 0.05


@pytest.mark.parametrize("seed", range(6))
def test_flip_and_crop_are_joint(seed):
    prepared = prepare_pair(pair(ramp(160, 100)), resolution=50, crop="random", flip=True, generator=seeded(seed))
    assert torch.equal(prepared.chosen, prepared.rejected)
    assert torch.equal(prepared.time_ids["chosen"], prepared.time_ids["rejected"])


def test_sides_of_different_size_share_the_relative_position():
    sides = pair(ramp(200, 100), ramp(100, 60))
    for seed in range(20):
        prepared = prepare_pair(sides, resolution=40, crop="random", flip=True, generator=seeded(seed))
        chosen, rejected = prepared.time_ids["chosen"], prepared.time_ids["rejected"]
        assert chosen[:2].tolist() == [100, 200]
        assert rejected[:2].tolist() == [60, 100]
        # 200 x 100 leaves 40 free pixels, 100 x 60 leaves 26 (66 x 40 after resizing).
        assert float(chosen[3]) / 40 == pytest.approx(float(rejected[3]) / 26, abs=1 / 26)
        mirrored = [bool(image[0, 0, 0] > image[0, 0, -1]) for image in (prepared.chosen, prepared.rejected)]
        assert mirrored[0] == mirrored[1]


def test_time_ids_name_the_crop_of_the_flipped_picture():
    """Pixel values prove the place: red is the x of the unflipped picture."""
    flips = 0
    for seed in range(12):
        prepared = prepare_pair(pair(ramp(160, 100)), resolution=100, crop="random", flip=True, generator=seeded(seed))
        left = float(prepared.time_ids["chosen"][3])
        first, last = ((prepared.chosen[0, 0, [0, -1]] + 1) * 127.5).tolist()
        flipped = first > last
        flips += flipped
        assert first == pytest.approx(159 - left if flipped else left, abs=1e-3)
    assert 0 < flips < 12


def test_random_crop_covers_every_position_evenly():
    lefts = [
        int(prepare_pair(pair(ramp(13, 10)), resolution=10, crop="random", generator=generator).time_ids["chosen"][3])
        for generator in [seeded(0)]
        for _ in range(400)
    ]
    counts = np.bincount(lefts)
    assert len(counts) == 4
    # 100 expected each; 4 standard deviations of a binomial(400, 1/4) are 35.
    assert np.abs(counts - 100).max() < 35


def test_flips_are_fair():
    generator = seeded(0)
    flips = sum(
        bool(image[0, 0, 0] > image[0, 0, -1])
        for image in (
            prepare_pair(pair(ramp(8, 8)), resolution=8, flip=True, generator=generator).chosen for _ in range(400)
        )
    )
    assert abs(flips - 200) < 40  # 4 standard deviations


def test_switching_flips_on_leaves_the_crops_alone():
    picture, crops = pair(ramp(160, 100)), []
    for flip in (False, True):
        generator = seeded(5)
        crops.append(
            [
                float(
                    prepare_pair(picture, resolution=50, crop="random", flip=flip, generator=generator).time_ids[
                        "chosen"
                    ][3]
                )
                for _ in range(10)
            ]
        )
    assert crops[0] == crops[1]


def test_same_generator_same_pixels():
    results = [
        prepare_pair(pair(ramp(90, 60)), resolution=32, crop="random", flip=True, generator=seeded(3)) for _ in range(2)
    ]
    assert torch.equal(results[0].chosen, results[1].chosen)


def test_mistaken_calls():
    with pytest.raises(ValueError, match=r"needs a torch\.Generator"):
        prepare_pair(pair(ramp(8, 8)), resolution=8, flip=True)
    with pytest.raises(ValueError, match="crop='middle'; choose center or random"):
        prepare_pair(pair(ramp(8, 8)), resolution=8, crop="middle")


def test_fixture_pairs_of_mixed_sizes():
    table = open_source(DataConfig(source="pickapic", path=str(FIXTURE)))
    sizes = set()
    for row in table:
        prepared = prepare_pair(row, resolution=64)
        for branch, image in (("chosen", row.chosen), ("rejected", row.rejected)):
            width, height = Image.open(io.BytesIO(image.read())).size
            assert prepared.time_ids[branch][:2].tolist() == [height, width]
            sizes.add((width, height))
        assert prepared.chosen.shape == prepared.rejected.shape == (3, 64, 64)
    assert len(sizes) > 2
