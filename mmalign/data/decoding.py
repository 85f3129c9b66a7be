"""From encoded bytes to an upright 8-bit RGB picture, or a reason why not."""

import io

import numpy as np
from PIL import Image, ImageOps

from mmalign.types import ImageBytes

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # Pillow's own limit; a small file can unpack to any size
MAX_ASPECT = 32  # resizing the short side to the resolution must not blow the long side up without bound
# Only formats that are pixels: Pillow would hand EPS, for one, to an outside interpreter.
_WANTED = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImage(ValueError):
    """A picture that cannot be used. ``origin`` says where it is, ``reason`` what is wrong with it."""

    def __init__(self, origin: str, reason: str) -> None:
        self.origin = origin
        self.reason = reason
        super().__init__(origin, reason)  # both, so that it pickles from a DataLoader worker

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}"


def decode(image: ImageBytes) -> Image.Image:
    """Fully decode ``image`` to mode RGB with its EXIF orientation applied; of an animation the first frame.

    Transparency is flattened on white, 16-bit grey is scaled to 8 bits (v / 257), grey, palette and CMYK are converted.
    Raises UnreadableImage for whatever cannot be decoded in full, is larger than ``MAX_PIXELS`` or longer than
    ``MAX_ASPECT`` times its width (or the other way round).
    """
    try:
        encoded = image.read()
        if not encoded:
            raise UnreadableImage(image.origin, "holds no bytes (a URL stored beside it is never fetched)")
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            refuse_size(image.origin, *picture.size)
            return upright_rgb(picture)
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(image.origin, f"file not found: {image.path}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(image.origin, f"not an image in a known format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(image.origin, f"more than {MAX_PIXELS} pixels: {error}") from error
    except Exception as error:  # broken bytes make Pillow's decoders raise anything from SyntaxError to struct.error
        raise UnreadableImage(image.origin, f"{type(error).__name__}: {error}") from error


def upright_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture as :func:`decode` gives it: upright, mode RGB, transparency on white, 16 bits scaled to 8."""
    return _to_rgb(ImageOps.exif_transpose(picture))


def refuse_size(origin: str, width: int, height: int) -> None:
    """UnreadableImage where a picture of this size is not used: too large, too long, or empty."""
    if width * height > MAX_PIXELS:
        raise UnreadableImage(origin, f"{width}x{height} is more than {MAX_PIXELS} pixels; scale it down")
    if min(width, height) < 1:
        raise UnreadableImage(origin, f"{width}x{height} has no pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnreadableImage(origin, f"{width}x{height} is longer than 1:{MAX_ASPECT}; crop it")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in SIXTEEN_BIT:
        return _grey_from_16_bit(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the picture with 8 or 16 bits")
    if picture.has_transparency_data:
        with_alpha = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), with_alpha).convert("RGB")
    return picture.convert("RGB")


def _grey_from_16_bit(picture: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255 instead of scaling."""
    values = np.asarray(picture, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"pixel values from {values.min()} to {values.max()} do not fit 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
