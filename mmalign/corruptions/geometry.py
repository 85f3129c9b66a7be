"""Crops, masks, shuffles and flips; the size of the picture stays, so its grid of tokens does."""

import math

import torch
from PIL import Image, ImageOps

from mmalign.corruptions.pixels import integer, picture, uniform, unit, within


def random_crop(
    image: Image.Image,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.01, 0.2),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A random piece, ``scale`` of the area and ``ratio`` wide to high, enlarged to the picture's size (bilinear).

    mDPO (arXiv 2406.11839) crops 1 to 20 % of the normalised pixels this way. The rule is that of torchvision's
    ``RandomResizedCrop``: ten tries (area even, log of the ratio even), then the largest piece of a ratio allowed.
    """
    _ends("scale", scale, 1.0)
    _ends("ratio", ratio, 100.0)
    unit(image)
    left, top, width, height = crop_box(image.size, generator, scale, ratio)
    box = (left, top, left + width, top + height)
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def crop_box(
    size: tuple[int, int], generator: torch.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the piece."""
    wide, high = size
    for _ in range(10):
        area = wide * high * uniform(generator, *scale)
        aspect = math.exp(uniform(generator, math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= wide and 0 < height <= high:
            return integer(generator, wide - width + 1), integer(generator, high - height + 1), width, height
    aspect = min(max(wide / high, ratio[0]), ratio[1])
    width, height = min(wide, max(1, round(high * aspect))), min(high, max(1, round(wide / aspect)))
    return (wide - width) // 2, (high - height) // 2, width, height


def patch_mask(
    image: Image.Image,
    generator: torch.Generator,
    *,
    share: float = 0.3,
    patch: int = 14,
    fill: tuple[int, int, int] | None = None,
) -> Image.Image:
    """round(``share`` x number) of the ``patch`` x ``patch`` squares replaced by ``fill`` (None: the picture's mean).

    OPA-DPO (CVPR 2025) masks 30 % of the image tokens; on pixels, squares of the encoder's patch size are those tokens.
    Squares at the right and lower edge may be smaller.
    """
    within("share", share, 0, 1, above=True)
    columns, rows = _grid(image, patch)
    number = round(share * columns * rows)
    hidden = torch.randperm(columns * rows, generator=generator)[:number].tolist()
    return _hide(image, [(cell % columns, cell // columns, 1, 1) for cell in hidden], patch, fill)


def block_mask(
    image: Image.Image,
    generator: torch.Generator,
    *,
    share: float = 0.3,
    patch: int = 14,
    fill: tuple[int, int, int] | None = None,
) -> Image.Image:
    """One rectangle of ``patch`` x ``patch`` squares, about ``share`` of the picture, replaced by ``fill``."""
    within("share", share, 0, 1, above=True)
    columns, rows = _grid(image, patch)
    width = min(columns, max(1, round(columns * math.sqrt(share))))
    height = min(rows, max(1, round(share * columns * rows / width)))
    place = integer(generator, columns - width + 1), integer(generator, rows - height + 1)
    return _hide(image, [(*place, width, height)], patch, fill)


def patch_shuffle(image: Image.Image, generator: torch.Generator, *, patch: int = 32) -> Image.Image:
    """All whole ``patch`` x ``patch`` squares in another order; what is left at the right and lower edge stays."""
    within("patch", patch, 1, min(image.size))
    unit(image)
    columns, rows = image.width // patch, image.height // patch
    if columns * rows < 2:
        raise ValueError(f"patch={patch} leaves one square of a picture of {image.width}x{image.height}; take less")
    shuffled = image.copy()
    order = list(range(columns * rows))
    while order == list(range(columns * rows)):
        order = torch.randperm(columns * rows, generator=generator).tolist()
    for place, origin in enumerate(order):
        left, top = origin % columns * patch, origin // columns * patch
        piece = image.crop((left, top, left + patch, top + patch))
        shuffled.paste(piece, (place % columns * patch, place // columns * patch))
    return shuffled


def flip(image: Image.Image, _generator: torch.Generator) -> Image.Image:
    """Left and right exchanged. Draws nothing. Only wrong where the text tells sides: see ``told_sides``."""
    unit(image)
    return ImageOps.mirror(image)


def blank_mean(image: Image.Image, _generator: torch.Generator) -> Image.Image:
    """Every pixel the picture's mean. Draws nothing. Not ``blank_zero``, and not ``no_image``."""
    mean = unit(image).mean(dim=(1, 2), keepdim=True)
    return picture(mean.expand(3, image.height, image.width))


def blank_zero(image: Image.Image, _generator: torch.Generator) -> Image.Image:
    """Every pixel 0, black: V-DPO's null picture (arXiv 2411.02712) before normalisation. Draws nothing."""
    unit(image)
    return Image.new("RGB", image.size, (0, 0, 0))


def _grid(image: Image.Image, patch: int) -> tuple[int, int]:
    unit(image)
    if isinstance(patch, bool) or int(patch) != patch or not 1 <= patch <= max(image.size):
        raise ValueError(f"patch={patch!r} must be a whole number from 1 to {max(image.size)}")
    return math.ceil(image.width / patch), math.ceil(image.height / patch)


def _hide(
    image: Image.Image, cells: list[tuple[int, int, int, int]], patch: int, fill: tuple[int, int, int] | None
) -> Image.Image:
    if fill is not None and (len(fill) != 3 or not all(0 <= value <= 255 for value in fill)):
        raise ValueError(f"fill={fill!r} must be three numbers from 0 to 255, or null for the picture's mean")
    mean = (unit(image).mean(dim=(1, 2)) * 255).round().int().tolist()
    colour = (mean[0], mean[1], mean[2]) if fill is None else fill
    masked = image.copy()
    for left, top, width, height in cells:
        box = left * patch, top * patch, (left + width) * patch, (top + height) * patch
        masked.paste(colour, (box[0], box[1], min(box[2], image.width), min(box[3], image.height)))
    return masked


def _ends(name: str, ends: tuple[float, float], highest: float) -> None:
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= highest:
        raise ValueError(f"{name}={ends!r} must be two numbers in order, above 0 and at most {highest:g}")
