"""Labelled grids of pictures, such as base against aligned on the same prompts and seeds."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SMALLEST_CELL = 128
LARGEST_CELL = 512
GAP = 8
MARGIN = 16
FONT_SIZE = 15
MAX_LINES = 4
PROMPTS_PER_BAND = 6
BACKGROUND, INK = (255, 255, 255), (38, 38, 44)


def grid(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """One RGB picture of ``rows``, with labels left of the rows and above the columns; the same input, the same bytes.

    Pictures under 128 px are enlarged by a whole factor with hard pixels, so tiny ones stay what they are; over 512 px
    they are reduced. Smaller ones are centred in their cell. Labels wrap, and are cut with an ellipsis after 4 lines.
    """
    _check(rows, row_labels, column_labels)
    cells = [[_fit(picture) for picture in row] for row in rows]
    width = max(picture.width for row in cells for picture in row)
    height = max(picture.height for row in cells for picture in row)
    font = ImageFont.load_default(FONT_SIZE)
    left_texts = [_wrap(label, max(width, SMALLEST_CELL), font) for label in row_labels or []]
    top_texts = [_wrap(label, width, font) for label in column_labels or []]
    left = MARGIN + _text_width(left_texts, font)
    top = MARGIN + _text_height(top_texts)

    columns = len(cells[0])
    size = (left + columns * (width + GAP) - GAP + MARGIN, top + len(cells) * (height + GAP) - GAP + MARGIN)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(top_texts):
        draw.multiline_text((left + column * (width + GAP), top - GAP), text, INK, font, anchor="ld", spacing=4)
    for index, row in enumerate(cells):
        y = top + index * (height + GAP)
        if left_texts:
            draw.multiline_text((MARGIN, y + height / 2), left_texts[index], INK, font, anchor="lm", spacing=4)
        for column, picture in enumerate(row):
            x = left + column * (width + GAP)
            canvas.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    return canvas


def comparison_grid(
    base: Sequence[Sequence[Image.Image]], aligned: Sequence[Sequence[Image.Image]], prompts: Sequence[str]
) -> Image.Image:
    """Base above aligned for every prompt and seed, pictures [prompts][seeds]; a new band after every sixth prompt."""
    if not (len(base) == len(aligned) == len(prompts) > 0):
        raise ValueError(f"got {len(prompts)} prompts, {len(base)} rows of base and {len(aligned)} of aligned pictures")
    seeds, bands = len(base[0]), []
    for start in range(0, len(prompts), PROMPTS_PER_BAND):
        band = slice(start, start + PROMPTS_PER_BAND)
        rows = [[row[seed] for row in side[band]] for seed in range(seeds) for side in (base, aligned)]
        names = [side if seeds == 1 else f"{side} {seed + 1}" for seed in range(seeds) for side in ("base", "aligned")]
        bands.append(grid(rows, row_labels=names, column_labels=prompts[band]))
    canvas = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), BACKGROUND)
    top = 0
    for band in bands:
        canvas.paste(band, (0, top))
        top += band.height
    return canvas


def save_png(picture: Image.Image, path: Path) -> Path:
    """Write ``picture`` to ``path`` whole or not at all, folders included; gives the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    picture.save(unfinished, format="PNG")
    return unfinished.replace(path)


def _fit(picture: Image.Image) -> Image.Image:
    """The picture on white, enlarged or reduced to between 128 and 512 px on its longest side."""
    flat = picture.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", flat.size, (*BACKGROUND, 255)), flat).convert("RGB")
    longest = max(flat.size)
    if longest < SMALLEST_CELL:
        factor = math.ceil(SMALLEST_CELL / longest)
        return flat.resize((flat.width * factor, flat.height * factor), Image.Resampling.NEAREST)
    if longest > LARGEST_CELL:
        flat.thumbnail((LARGEST_CELL, LARGEST_CELL), Image.Resampling.LANCZOS)
    return flat


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """``text`` in lines of at most ``width`` pixels; words too long for a line are broken, too many lines cut."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width:
            lines[-1] = candidate
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    lines = [line for line in lines if line]
    if len(lines) > MAX_LINES:
        lines = lines[:MAX_LINES]
        while lines[-1] and font.getlength(lines[-1] + "…") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "…"
    return "\n".join(lines)


def _text_width(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    lines = [line for text in texts for line in text.split("\n")]
    return math.ceil(max((font.getlength(line) for line in lines), default=0)) + (2 * GAP if lines else 0)


def _text_height(texts: Sequence[str]) -> int:
    return max((text.count("\n") + 1 for text in texts), default=0) * (FONT_SIZE + 4) + (GAP if texts else 0)


def _check(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str] | None, column_labels: Sequence[str] | None
) -> None:
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(f"a grid needs rows of one equal length, one picture or more, got lengths {lengths}")
    for name, labels, count in (("row", row_labels, len(rows)), ("column", column_labels, lengths[0])):
        if labels is not None and len(labels) != count:
            raise ValueError(f"the grid has {count} {name}s but {len(labels)} {name} labels")
