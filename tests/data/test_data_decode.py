"""Every kind of picture ends as upright 8-bit RGB, or as an error with a reason."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from making_data import encoded, png
from PIL import Image, ImageDraw

from mmalign.data import UnreadableImage, decode
from mmalign.types import ImageBytes


def decoded(data: bytes) -> np.ndarray:
    picture = decode(ImageBytes("here", data=data))
    assert picture.mode == "RGB"
    return np.asarray(picture)


def reason(data: bytes) -> str:
    with pytest.raises(UnreadableImage, match=r"^here: ") as caught:
        decode(ImageBytes("here", data=data))
    return caught.value.reason


def test_rgb_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """EXIF 2.32, table 6: where the 0th row and the 0th column of the stored picture belong on screen."""
    upright = np.zeros((2, 3, 3), dtype=np.uint8)
    upright[0, 0], upright[0, 2], upright[1, 0] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    # For each orientation, the stored array that a viewer must turn back into `upright`.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)), upright)


def test_transparency_is_flattened_on_white():
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = [255, 0, 51]  # black: opaque, invisible, a fifth
    assert decoded(encoded(Image.fromarray(pixels, "RGBA")))[0, :, 0].tolist() == [0, 255, 204]


def test_grey_with_alpha():
    picture = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.new("L", (2, 1), 0)])
    assert decoded(encoded(picture)).tolist() == [[[255] * 3] * 2]


def test_palette_and_palette_with_transparency():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert decoded(encoded(picture)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decoded(encoded(picture, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    assert decoded(encoded(Image.fromarray(values), kind))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_grey_and_bilevel():
    assert decoded(encoded(Image.new("L", (1, 1), 77))).tolist() == [[[77, 77, 77]]]
    assert decoded(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255, 255, 255]]]


def test_cmyk_jpeg():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    assert np.abs(decoded(encoded(picture, "JPEG", quality=95)).astype(int) - [255, 0, 0]).max() <= 3


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert decoded(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_pictures(kind):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(picture, kind)
    decoded(whole)
    assert reason(whole[: len(whole) // 2])


def test_not_an_image():
    assert "not an image in a known format (JPEG, " in reason(b"<html>404</html>")
    assert "holds no bytes" in reason(b"")


def test_formats_that_are_programs_are_refused():
    postscript = encoded(Image.new("RGB", (4, 4)), "EPS")
    assert "not an image in a known format" in reason(postscript)


def test_floating_point_pixels_are_refused():
    assert "floating-point" in reason(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs(side):
    assert "more than 89478485 pixels" in reason(bomb(side, side))


def test_zero_size_and_endless_strips():
    assert reason(bomb(0, 4))
    assert "33x1 is longer than 1:32" in reason(png(33, 1))
    assert decoded(png(32, 1)).shape == (1, 32, 3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImage, match=r"row 3: file not found: .*gone\.png"):
        decode(ImageBytes("row 3", path=tmp_path / "gone.png"))
    with pytest.raises(UnreadableImage, match="row 3: IsADirectoryError"):
        decode(ImageBytes("row 3", path=tmp_path))


def test_the_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(UnreadableImage("row 3", "broken")))
    assert (error.origin, error.reason, str(error)) == ("row 3", "broken", "row 3: broken")


def test_drawing_survives_jpeg():
    picture = Image.new("RGB", (32, 32), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 15, 31), fill="black")
    pixels = decoded(encoded(picture, "JPEG", quality=95))
    assert pixels[:, :14].max() < 30
    assert pixels[:, 18:].min() > 225
