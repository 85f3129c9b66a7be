"""Several pictures as one question: MIA-DPO's sequences, grids and pictures in a picture (arXiv 2410.17637)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from mmalign.corruptions.pixels import integer, unit, within

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Collage:
    """Pictures to show, which of them (``shown``) holds the target, where in it (``box``), and the words that point to
    it, to put before a question about the target. ``boxes``: where all pictures of a grid are, the target among them.
    """

    images: tuple[Image.Image, ...]
    shown: int
    box: Box
    pointer: str
    boxes: tuple[Box, ...] = ()

    def squared(self) -> "Collage":
        """The same with its one image in the middle of a black square: encoders that crop then cut nothing."""
        image, *more = self.images
        if more:
            raise ValueError("only a collage of one image can be made square as a whole")
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        canvas = Image.new("RGB", (side, side))
        canvas.paste(image, (left, top))

        def moved(box: Box) -> Box:
            return box[0] + left, box[1] + top, box[2] + left, box[3] + top

        boxes = tuple(moved(box) for box in self.boxes)
        return Collage((canvas,), self.shown, moved(self.box), self.pointer, boxes)


def sequence(target: Image.Image, others: Sequence[Image.Image], generator: torch.Generator) -> Collage:
    """The target somewhere among ``others``, all separate pictures; MIA-DPO uses 2 to 5 in all."""
    _checked(target, others)
    place = integer(generator, len(others) + 1)
    images = (*others[:place], target, *others[place:])
    return Collage(images, place, (0, 0, *target.size), f"In picture {place + 1}: ")


def grid(target: Image.Image, others: Sequence[Image.Image], generator: torch.Generator, *, cell: int = 224) -> Collage:
    """One picture of square cells, in as few rows as columns, the target in one of them; MIA-DPO uses 2 to 9 cells.

    Pictures keep their aspect ratio, centred on black. Row and column in ``pointer`` count from 1 at the upper left.
    """
    _checked(target, others)
    within("cell", cell, 8, 4096)
    number = len(others) + 1
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    place = integer(generator, number)
    pictures = [*others[:place], target, *others[place:]]
    canvas = Image.new("RGB", (columns * cell, rows * cell))
    boxes: list[Box] = []
    for index, shown in enumerate(pictures):
        fitted = _fitted(shown, cell, cell)
        left = index % columns * cell + (cell - fitted.width) // 2
        top = index // columns * cell + (cell - fitted.height) // 2
        canvas.paste(fitted, (left, top))
        boxes.append((left, top, left + fitted.width, top + fitted.height))
    pointer = f"In the picture in row {place // columns + 1}, column {place % columns + 1}: "
    return Collage((canvas,), 0, boxes[place], pointer, tuple(boxes))


def picture_in_picture(
    target: Image.Image, others: Sequence[Image.Image], _generator: torch.Generator, *, share: float = 0.5
) -> Collage:
    """The target, ``share`` as wide and high at most, in the middle of the one other picture, whose size stays."""
    _checked(target, others)
    within("share", share, 0, 1, above=True)
    if len(others) != 1:
        raise ValueError(f"picture_in_picture takes one other picture, not {len(others)}")
    background = others[0].copy()
    fitted = _fitted(target, max(1, round(share * background.width)), max(1, round(share * background.height)))
    left, top = (background.width - fitted.width) // 2, (background.height - fitted.height) // 2
    background.paste(fitted, (left, top))
    return Collage((background,), 0, (left, top, left + fitted.width, top + fitted.height), "In the inner picture: ")


COLLAGES = {"sequence": sequence, "grid": grid, "picture_in_picture": picture_in_picture}


def _checked(target: Image.Image, others: Sequence[Image.Image]) -> None:
    for shown in (target, *others):
        unit(shown)
    if not others:
        raise ValueError("a collage needs at least one other picture")


def _fitted(shown: Image.Image, width: int, height: int) -> Image.Image:
    factor = min(width / shown.width, height / shown.height)
    size = max(1, round(shown.width * factor)), max(1, round(shown.height * factor))
    return shown.resize(size, Image.Resampling.BICUBIC)
