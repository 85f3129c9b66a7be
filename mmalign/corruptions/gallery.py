"""Every corruption on one picture, as a labelled grid: python -m mmalign.corruptions.gallery PICTURE OUT.png."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmalign.corruptions import CORRUPTIONS, corrupt
from mmalign.pictures import grid, save_png

COLUMNS = 4


def gallery(
    image: Image.Image, seed: int = 0, parameters: Mapping[str, Mapping[str, Any]] | None = None
) -> Image.Image:
    """The picture and every corruption of it with its defaults, or with ``parameters`` of that name."""
    told = parameters or {}
    cells = [("as it is", image)]
    for name in CORRUPTIONS:
        generator = torch.Generator().manual_seed(seed)
        cells.append((name, corrupt(image, name, generator, **told.get(name, {}))))
    blank = Image.new("RGB", image.size, "white")
    cells += [("", blank)] * (-len(cells) % COLUMNS)
    bands = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    parts = [grid([[shown for _, shown in band]], column_labels=[name for name, _ in band]) for band in bands]
    sheet = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


if __name__ == "__main__":
    with Image.open(sys.argv[1]) as given:
        print(save_png(gallery(given.convert("RGB")), Path(sys.argv[2])))
