"""Preprocessing, pixel by pixel, against torchvision's and transformers' own transforms and plain numpy."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as vision

from mmalign.data.decoding import UnreadableImage
from reward_models.pixels import CLIP_MEAN, CLIP_STD, Preprocess

SIZES = [(224, 224), (64, 64), (300, 227), (227, 300), (1, 1), (3, 40), (230, 1000), (1601, 1200), (224, 100)]


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), channels))
    values = np.kron(values, np.ones((8, 8, 1))).astype(np.uint8)
    return np.pad(values, ((0, 8), (0, 8), (0, 0)), mode="edge")[:height, :width]


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_torchvisions(size):
    picture = Image.fromarray(noise(*size))
    published = Compose(
        [Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]
    )
    assert torch.equal(Preprocess().pictures([picture])[0], published(picture))


@pytest.mark.parametrize("size", [(300, 227), (227, 300), (224, 450), (227, 224)])
def test_the_corner_of_transformers_is_another(size):
    """The slow CLIP processor resizes with Pillow and cuts at (length - 224) // 2."""
    picture = Image.fromarray(noise(*size))
    width, height = picture.size
    short = min(width, height)
    picture_scaled = picture.resize((int(224 * width / short), int(224 * height / short)), Image.Resampling.BICUBIC)
    values = np.asarray(picture_scaled, dtype=np.float64)
    top, left = (values.shape[0] - 224) // 2, (values.shape[1] - 224) // 2
    values = (values[top : top + 224, left : left + 224] / 255 - CLIP_MEAN) / CLIP_STD
    made = Preprocess(corner="transformers").pictures([picture])[0]
    np.testing.assert_allclose(made.permute(1, 2, 0), values, atol=1e-5)


def test_the_corners_differ_by_a_pixel_where_the_play_is_3():
    picture = Image.fromarray(noise(227, 224))
    one = Preprocess(mean=(0, 0, 0), std=(1, 1, 1)).pictures([picture])[0]
    other = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), corner="transformers").pictures([picture])[0]
    assert torch.equal(one[..., :-1], other[..., 1:])
    assert not torch.equal(one, other)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [size for size in SIZES if size != (224, 100)])
def test_letterbox_is_resize_max_size(size, antialias):
    picture = Image.fromarray(noise(*size))
    image = vision.to_tensor(picture)
    scale = 224 / max(size)
    height, width = (max(1, round(side * scale)) for side in (size[1], size[0]))
    if scale != 1:
        image = vision.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=antialias)
    down, right = 224 - height, 224 - width
    image = vision.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
    published = vision.normalize(image, CLIP_MEAN, CLIP_STD)
    made = Preprocess(fit="letterbox", antialias=antialias).pictures([picture])[0]
    assert torch.equal(made, published)


def test_letterbox_pads_a_picture_that_needs_no_scaling():
    made = Preprocess(fit="letterbox", mean=(0, 0, 0), std=(1, 1, 1)).pictures([Image.new("RGB", (224, 100), "white")])
    assert made.shape == (1, 3, 224, 224)
    assert made[0, :, 62:162].min() == 1
    assert made[0, :, :62].max() == 0
    assert made[0, :, 162:].max() == 0


def rotated(values: np.ndarray) -> Image.Image:
    """Stored lying down with the EXIF note to turn it upright, as phones do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.rot90(values, 1)).save(stream, format="PNG", exif=exif)
    return Image.open(io.BytesIO(stream.getvalue()))


def with_alpha(values: np.ndarray) -> Image.Image:
    half = np.full((*values.shape[:2], 1), 51, dtype=np.uint8)
    return Image.fromarray(np.concatenate([values, half], axis=-1))


COLOUR, GREY = noise(90, 130), noise(90, 130, 1)[..., 0]
KINDS = {
    "rotated": (rotated(COLOUR), COLOUR),
    "transparent": (with_alpha(COLOUR), np.round(COLOUR * 0.2 + 255 * 0.8)),
    "grey": (Image.fromarray(GREY), np.stack([GREY] * 3, axis=-1)),
    "16 bit": (Image.fromarray(GREY.astype(np.uint16) * 257), np.stack([GREY] * 3, axis=-1)),
    "palette": (Image.fromarray(COLOUR // 128 * 255).convert("P"), COLOUR // 128 * 255),
}


@pytest.mark.parametrize("fit", ["crop", "letterbox"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_mode_arrives_as_upright_rgb(kind, fit):
    picture, values = KINDS[kind]
    preprocess = Preprocess(fit=fit)
    plain = Image.fromarray(values.astype(np.uint8))
    difference = preprocess.pictures([picture]) - preprocess.pictures([plain])
    assert difference.abs().max() * min(CLIP_STD) * 255 <= (1.01 if kind == "transparent" else 0)


def test_pictures_nobody_can_scale_are_named():
    with pytest.raises(UnreadableImage, match=r"picture 1: 2x500 is longer than 1:32"):
        Preprocess().pictures([Image.new("RGB", (9, 9)), Image.new("RGB", (2, 500))])


@pytest.mark.parametrize("size", [(224, 224), (300, 227), (500, 640), (64, 96)])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_the_tensor_path_is_the_picture_path_up_to_rounding(size, fit):
    picture = Image.fromarray(noise(*size))
    preprocess = Preprocess(fit=fit, mean=(0, 0, 0), std=(1, 1, 1))
    tensor = vision.to_tensor(picture)[None].requires_grad_()
    made = preprocess.tensor(tensor)
    expected = preprocess.pictures([picture])
    levels = ((made - expected).abs().max() * 255).item()
    assert levels == 0 if fit == "letterbox" or size == (224, 224) else levels < 1.6
    made.sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.abs().sum() > 0


def test_tensors_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"takes pictures \[batch, 3, height, width\], got \[2, 4, 8, 8\]"):
        Preprocess().tensor(torch.zeros(2, 4, 8, 8))
