"""Grids: the pictures are there pixel for pixel, labels fit, and the bytes never change."""

import numpy as np
import pytest
from PIL import Image

from mmalign.pictures import GAP, MARGIN, comparison_grid, grid, save_png


def noise(side, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_cells_without_labels_are_the_pictures_themselves():
    pictures = [[noise(150, 1), noise(150, 2)], [noise(150, 3), noise(150, 4)]]
    canvas = grid(pictures)
    assert canvas.size == (2 * 150 + GAP + 2 * MARGIN,) * 2
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            left, top = MARGIN + x * (150 + GAP), MARGIN + y * (150 + GAP)
            assert np.array_equal(canvas.crop((left, top, left + 150, top + 150)), picture)


def test_tiny_pictures_are_enlarged_with_hard_pixels_and_big_ones_reduced():
    tiny = noise(50)
    cell = grid([[tiny]]).crop((MARGIN, MARGIN, MARGIN + 150, MARGIN + 150))
    assert np.array_equal(np.asarray(cell)[1::3, 1::3], tiny)
    assert np.array_equal(np.asarray(cell)[::3, 2::3], tiny)
    assert grid([[noise(1100)]]).size == (512 + 2 * MARGIN,) * 2


def test_transparent_pictures_lie_on_white():
    cell = grid([[Image.new("RGBA", (200, 200), (255, 0, 0, 0))]])
    assert cell.getpixel((100, 100)) == (255, 255, 255)


def test_labels_take_room_leave_the_pictures_whole_and_are_deterministic():
    rows = [[noise(200, 1), noise(200, 2)]]
    labels = {"row_labels": ["a very long prompt " * 30], "column_labels": ["base", "Ünbroken" * 20]}
    canvas = grid(rows, **labels)
    assert canvas.tobytes() == grid(rows, **labels).tobytes()
    right = canvas.crop(
        (canvas.width - MARGIN - 200, canvas.height - MARGIN - 200, canvas.width - MARGIN, canvas.height - MARGIN)
    )
    assert np.array_equal(right, rows[0][1])
    label = np.asarray(canvas.crop((MARGIN, canvas.height - MARGIN - 200, MARGIN + 150, canvas.height - MARGIN)))
    assert (label < 100).any()
    assert (np.asarray(canvas)[:MARGIN] == 255).all()  # cut after four lines, so nothing runs over the edge


def test_comparison_has_base_above_aligned_in_bands_of_six_prompts():
    base = [[noise(130, prompt)] for prompt in range(8)]
    aligned = [[noise(130, 100 + prompt)] for prompt in range(8)]
    canvas = comparison_grid(base, aligned, [str(prompt) for prompt in range(8)])
    pixels = np.asarray(canvas)
    places = {}
    for name, side in (("base", base), ("aligned", aligned)):
        for prompt, (picture,) in enumerate(side):
            corner = np.asarray(picture)[0, :8]
            rows, columns = np.nonzero((pixels[:, : canvas.width - 7] == corner[0]).all(axis=-1))
            found = [(y, x) for y, x in zip(rows, columns, strict=True) if (pixels[y, x : x + 8] == corner).all()]
            assert len(found) == 1
            places[name, prompt] = found[0]
    for prompt in range(8):
        assert places["base", prompt][1] == places["aligned", prompt][1]
        assert places["aligned", prompt][0] - places["base", prompt][0] == 130 + GAP
    assert places["base", 6][0] > places["aligned", 0][0] + 130
    assert places["base", 6][1] == places["base", 0][1]


def test_comparison_of_uneven_sides_is_refused():
    with pytest.raises(ValueError, match="2 prompts, 1 rows of base and 1 of aligned"):
        comparison_grid([[noise(9)]], [[noise(9)]], ["a", "b"])


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([], {}, "equal length"),
        ([[noise(9)], []], {}, r"lengths \[0, 1\]"),
        ([[noise(9)]], {"row_labels": ["a", "b"]}, "1 rows but 2 row labels"),
        ([[noise(9)]], {"column_labels": []}, "1 columns but 0 column labels"),
    ],
)
def test_uneven_grids_are_refused(rows, labels, message):
    with pytest.raises(ValueError, match=message):
        grid(rows, **labels)


def test_saving_leaves_one_file(tmp_path):
    path = save_png(noise(9), tmp_path / "pictures" / "step_000010.png")
    assert [file.name for file in path.parent.iterdir()] == ["step_000010.png"]
    assert np.array_equal(Image.open(path), noise(9))
