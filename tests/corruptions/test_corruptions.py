"""Corruptions: published numbers, the same bytes from the same generator, and the size that stays."""

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.corruptions import (
    CORRUPTIONS,
    VIDEO_CORRUPTIONS,
    RetrievalIndex,
    alpha_bars,
    check,
    corrupt,
    corrupt_video,
    flip_makes_wrong,
    told_sides,
)
from mmalign.corruptions.collages import grid, picture_in_picture, sequence
from mmalign.corruptions.gallery import gallery
from mmalign.corruptions.geometry import crop_box


def photo(width: int = 70, height: int = 56, seed: int = 0) -> Image.Image:
    """Smooth colours and a little noise."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) * 127 / (width + height)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 4, base.shape)
    return Image.fromarray((base + noise).clip(0, 255).astype(np.uint8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


SMALL = {"shuffle": {"patch": 14}}  # the default leaves two squares of this small picture
DRAWS = {"crop", "noise", "patch_mask", "block_mask", "shuffle", "colour"}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_generator_same_bytes_and_the_size_stays(name: str) -> None:
    image, before = photo(), photo().tobytes()
    first, again, other = (corrupt(image, name, seeded(seed), **SMALL.get(name, {})) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert (first.size, first.mode) == (image.size, "RGB")
    assert first.tobytes() != before
    assert image.tobytes() == before  # the given picture is left as it is
    assert (first.tobytes() != other.tobytes()) == (name in DRAWS)


def test_bytes_are_pinned() -> None:
    """A change of these bytes makes cached reference scores of corrupted branches wrong: raise the caches' version."""
    names = ("crop", "noise", "patch_mask", "block_mask", "shuffle", "blank_mean")
    digests = {n: hashlib.sha256(corrupt(photo(), n, seeded(5)).tobytes()).hexdigest()[:12] for n in names}
    assert digests == PINNED


PINNED = {
    "crop": "1f94381db2f3",
    "noise": "ff047249e40e",
    "patch_mask": "111e5529da8e",
    "block_mask": "c14dae04243e",
    "shuffle": "fca713b1476d",
    "blank_mean": "f343d05179e1",
}


# sqrt(alpha_bar), sqrt(1 - alpha_bar) of the schedule of VCD and POVID.
TABLE = {200: (0.994, 0.110), 400: (0.945, 0.327), 500: (0.863, 0.505), 600: (0.734, 0.679), 700: (0.593, 0.805)}
TABLE |= {900: (0.365, 0.931), 999: (0.285, 0.959)}


@pytest.mark.parametrize("step", TABLE)
def test_the_schedule_of_diffusion_noise(step: int) -> None:
    kept = alpha_bars()[step]
    assert (round(float(kept.sqrt()), 3), round(float((1 - kept).sqrt()), 3)) == TABLE[step]
    betas = [1 / (1 + math.exp(-(-6 + 12 * i / 999))) * (5e-3 - 1e-5) + 1e-5 for i in range(step + 1)]
    assert float(kept) == pytest.approx(math.prod(1 - beta for beta in betas), rel=1e-9)


def test_noise_keeps_mean_and_adds_the_spread_of_its_step() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noised = pixels(corrupt(grey, "noise", seeded(), step=200)) / 255
    kept = float(alpha_bars()[200])
    assert noised.mean() == pytest.approx(math.sqrt(kept) * 128 / 255, abs=2e-3)
    assert noised.std() == pytest.approx(math.sqrt(1 - kept), rel=0.01)


def test_noise_is_clamped_and_does_not_wrap() -> None:
    white = Image.new("RGB", (100, 100), (255, 255, 255))
    noised = pixels(corrupt(white, "noise", seeded(), step=200)) / 255
    # Above 1 half the values are; wrapped, they would be near 0.
    assert (noised == 1.0).mean() > 0.4
    assert noised.min() > 0.3


def test_crops_are_pieces_of_the_published_area() -> None:
    areas, aspects = [], []
    for seed in range(300):
        left, top, width, height = crop_box((1000, 800), seeded(seed), (0.01, 0.2), (3 / 4, 4 / 3))
        assert left >= 0 and top >= 0 and left + width <= 1000 and top + height <= 800  # noqa: PT018
        areas.append(width * height / 800_000)
        aspects.append(math.log(width / height))
    assert min(areas) >= 0.0095
    assert max(areas) <= 0.201
    assert np.mean(areas) == pytest.approx(0.105, abs=0.01)  # even between the ends
    assert np.mean(aspects) == pytest.approx(0, abs=0.03)
    assert max(map(abs, aspects)) <= math.log(4 / 3) + 0.02


def test_a_crop_that_never_fits_takes_the_largest_allowed() -> None:
    assert crop_box((100, 10), seeded(), (1.0, 1.0), (3 / 4, 4 / 3)) == (43, 0, 13, 10)


@pytest.mark.parametrize("name", ["patch_mask", "block_mask"])
def test_masks_hide_the_share_of_whole_patches(name: str) -> None:
    image = photo(70, 56)  # 5 x 4 patches of 14
    masked = corrupt(image, name, seeded(), share=0.3, patch=14, fill=(1, 2, 3))
    hidden = (pixels(masked) == (1, 2, 3)).all(axis=-1).reshape(4, 14, 5, 14).swapaxes(1, 2)
    whole = hidden.all(axis=(2, 3))
    assert whole.sum() == 6
    assert (hidden.any(axis=(2, 3)) == whole).all()
    if name == "block_mask":
        rows, columns = np.flatnonzero(whole.any(axis=1)), np.flatnonzero(whole.any(axis=0))
        assert len(rows) * len(columns) == 6
    untouched = ~hidden.swapaxes(1, 2).reshape(56, 70)
    assert (pixels(masked)[untouched] == pixels(image)[untouched]).all()


def test_three_kinds_of_nothing() -> None:
    image = photo()
    mean = pixels(corrupt(image, "blank_mean", seeded()))
    assert (mean == np.round(pixels(image).mean(axis=(0, 1)))).all()
    assert pixels(corrupt(image, "blank_zero", seeded())).max() == 0
    with pytest.raises(ValueError, match="'no_image' is no corruption"):
        check("no_image", {})


def test_shuffled_patches_are_the_same_patches() -> None:
    image = photo(72, 50)
    shuffled = corrupt(image, "shuffle", seeded(), patch=24)
    parts = [
        sorted(part.crop((x, y, x + 24, y + 24)).tobytes() for x in (0, 24, 48) for y in (0, 24))
        for part in (image, shuffled)
    ]
    assert parts[0] == parts[1]
    assert pixels(image)[48:].tolist() == pixels(shuffled)[48:].tolist()


def test_colour_turns_hues_and_leaves_brightness() -> None:
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    turned = corrupt(red, "colour", seeded()).getpixel((0, 0))
    assert isinstance(turned, tuple)
    assert max(turned) == pytest.approx(200, abs=3)
    assert turned[0] < 200
    with pytest.raises(ValueError, match="nothing would change"):
        corrupt(red, "colour", seeded(), hue=0.0)


def test_flip_is_wrong_only_where_the_text_tells_sides() -> None:
    assert pixels(corrupt(photo(), "flip", seeded())).tolist() == pixels(photo())[:, ::-1].tolist()
    wrong = ("A cube left of a ball.", "The rightmost one.", 'The sign reads "STOP".', "He turns clockwise.")
    true = ("A red cube above a ball.", "A bright day.", "That is the right answer.", "All right, nothing left.")
    assert [flip_makes_wrong(text) for text in wrong] == [True] * 4
    assert [flip_makes_wrong(text) for text in true] == [False] * 4
    assert told_sides("to the left, right away")


WRONG = [
    ("crop", {"scale": (0.5, 0.1)}, "scale="),
    ("crop", {"scale": (0.0, 0.1)}, "scale="),
    ("crop", {"ratio": (0.0, 1.0)}, "ratio="),
    ("noise", {"step": 1000}, "step=1000"),
    ("noise", {"step": 1.5}, "whole number"),
    ("noise", {"t": 5}, "noise has no parameter 't'; it has step"),
    ("blur", {"radius": 0}, "radius=0"),
    ("patch_mask", {"share": 1.5}, "share="),
    ("patch_mask", {"patch": 0}, "patch=0"),
    ("block_mask", {"fill": (1, 2)}, "fill="),
    ("shuffle", {"patch": 50}, "one square"),
    ("colour", {"hue": 0.7}, "hue=0.7"),
    ("nothing", {}, "'nothing' is no corruption of pictures; choose one of crop"),
]


@pytest.mark.parametrize(("name", "parameters", "said"), WRONG)
def test_parameters_out_of_range_are_refused(name: str, parameters: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        corrupt(photo(), name, seeded(), **parameters)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_parameters_are_checked_without_a_picture(name: str) -> None:
    check(name, {})
    for other, parameters, said in WRONG:
        if other == name and parameters.get("patch") != 50:  # too large for one picture, not for all
            with pytest.raises(ValueError, match=said):
                check(name, parameters)
    with pytest.raises(ValueError, match="another type"):
        check("noise", {"step": "many"})
    check("patch_mask", {"patch": 448})


def test_the_gallery_shows_every_corruption() -> None:
    sheet = gallery(photo(128, 128))
    assert sheet.width > 4 * 128
    assert sheet.height > 3 * 128
    assert sheet.tobytes() == gallery(photo(128, 128)).tobytes()


def test_pictures_that_are_not_rgb_are_refused() -> None:
    for name in CORRUPTIONS:
        with pytest.raises(ValueError, match="mode L"):
            corrupt(photo().convert("L"), name, seeded())


@pytest.mark.parametrize("name", VIDEO_CORRUPTIONS)
def test_videos_keep_their_number_of_frames(name: str) -> None:
    frames = [Image.new("RGB", (20, 16), (n, 0, 0)) for n in range(8)]
    changed, again = (corrupt_video(frames, name, seeded(1)) for _ in range(2))
    assert len(changed) == 8
    assert [frame.tobytes() for frame in changed] == [frame.tobytes() for frame in again]
    shown = [int(np.asarray(frame)[0, 0, 0]) for frame in changed]
    if name == "frame_reverse":
        assert shown == list(range(7, -1, -1))
    elif name == "frame_shuffle":
        assert shown != list(range(8))
        assert sorted(shown) == list(range(8))
    elif name == "frame_drop":
        assert len(set(shown)) == 4
        assert shown == sorted(shown)
    elif name == "frame_clip":
        assert sorted(set(shown)) == list(range(shown[0], shown[0] + 2))
    else:
        assert shown == list(range(8))  # crops pixels, and leaves time alone
    if name != "frame_crop":
        with pytest.raises(ValueError, match="at least two"):
            corrupt_video(frames[:1], name, seeded())
    with pytest.raises(ValueError, match="no corruption of videos"):
        corrupt_video(frames, "melt", seeded())


def test_retrieval_finds_the_nearest_other_picture() -> None:
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.9, 0.1], [-1.0, 0.0]])
    index = RetrievalIndex.of(["a", "resaved a", "b", "c", "b", "d"], vectors)
    assert index.keys == ("a", "resaved a", "b", "c", "d")
    found = index.nearest("a", k=2)
    assert [key for key, _ in found] == ["b", "c"]  # not itself, nor the one with the same embedding
    assert found[0][1] == pytest.approx(0.9 / math.hypot(0.9, 0.1))
    assert index.nearest("b")[0][0] == "a"
    with pytest.raises(ValueError, match="k=4"):
        index.nearest("a", k=4)
    with pytest.raises(ValueError, match="picture z is not in the index"):
        index.nearest("z")
    with pytest.raises(ValueError, match="length 0"):
        RetrievalIndex.of(["a"], torch.zeros(1, 2))


def test_collages_hold_the_target_where_they_say() -> None:
    target = Image.new("RGB", (40, 30), (255, 0, 0))
    others = [Image.new("RGB", (50, 50), (0, n, 255)) for n in range(1, 4)]
    made = sequence(target, others, seeded(1))
    assert made.images[made.shown] is target
    assert made.pointer == f"In picture {made.shown + 1}: "
    assert len(made.images) == 4
    seen = set()
    for seed in range(12):
        one = grid(target, others, seeded(seed), cell=64)
        assert one.images[0].size == (128, 128)
        inside = pixels(one.images[0].crop(one.box))
        assert (inside == (255, 0, 0)).all()
        assert (one.box[2] - one.box[0], one.box[3] - one.box[1]) == (64, 48)  # the aspect ratio stays
        seen.add(one.pointer)
    assert len(seen) == 4
    inner = picture_in_picture(target, others[:1], seeded())
    assert inner.images[0].size == (50, 50)
    assert (pixels(inner.images[0].crop(inner.box)) == (255, 0, 0)).all()
    assert inner.images[0].getpixel((0, 0)) == (0, 1, 255)
    with pytest.raises(ValueError, match="takes one other picture, not 3"):
        picture_in_picture(target, others, seeded())
    with pytest.raises(ValueError, match="at least one other"):
        grid(target, [], seeded())
