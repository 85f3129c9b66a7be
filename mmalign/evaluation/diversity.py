"""How different the pictures of a model are from each other: alignment often buys quality with variety.

A *measure* turns n pictures into an [n, n] matrix of distances. Variety is the mean distance over pairs of different
pictures, either of the same prompt over seeds or of different prompts with the same seed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mmalign.evaluation.winrate import Estimate, MeanDifference, interval, mean_difference, prompt_draws

Images = Sequence[Sequence[Image.Image]]
Measure = Callable[[Sequence[Image.Image]], NDArray[np.float64]]
Embed = Callable[[Sequence[Image.Image]], ArrayLike]

THUMBNAIL = 64
COLOUR_LEVELS = 4


def pixel_distances(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """sqrt(mean((a - b)^2)) over pixels and channels in [0, 1], on 64 x 64 box-filtered copies: layout and colour."""
    pixels = np.stack([_thumbnail(image).ravel() for image in images]) / 255
    return _euclidean(pixels / np.sqrt(pixels.shape[1]))


def colour_distances(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Hellinger distance in [0, 1] between 4 x 4 x 4 RGB histograms: which colours, regardless of where they are."""
    return _euclidean(np.stack([np.sqrt(_colour_histogram(image)) for image in images]) / np.sqrt(2))


def embedding_distances(embed: Embed) -> Measure:
    """The measure 1 - cosine between embeddings; ``embed`` gives [n, d] for n pictures."""

    def distances(images: Sequence[Image.Image]) -> NDArray[np.float64]:
        vectors = np.asarray(embed(images), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise ValueError(
                f"embed must give [{len(images)}, d] for {len(images)} pictures, got {list(vectors.shape)}"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or (lengths == 0).any():
            raise ValueError("embed gave a vector that is zero or not finite; a cosine needs neither")
        unit = vectors / lengths
        return 1 - unit @ unit.T

    return distances


def measure_diversity(
    base_images: Images, aligned_images: Images, *, embed: Embed | None = None, bootstrap: int = 2000, seed: int = 0
) -> dict[str, MeanDifference]:
    """Variety of both models by every measure: ``"pixels across prompts"``, ``"colours over seeds"``, ...

    Images are [prompts][seeds]. The *over seeds* rows are there only with two seeds or more.
    """
    measures: dict[str, Measure] = {"pixels": pixel_distances, "colours": colour_distances}
    if embed is not None:
        measures["embedding"] = embedding_distances(embed)
    result = {}
    for name, measure in measures.items():
        if len(base_images[0]) > 1:
            sides = [_over_seeds(images, measure)[:, None] for images in (base_images, aligned_images)]
            result[f"{name} over seeds"] = mean_difference(*sides, bootstrap=bootstrap, seed=seed)
        matrices = [_across_prompts(images, measure) for images in (base_images, aligned_images)]
        result[f"{name} across prompts"] = pairwise_difference(*matrices, bootstrap=bootstrap, seed=seed)
    return result


def pairwise_difference(
    base: NDArray[np.float64], aligned: NDArray[np.float64], *, bootstrap: int = 2000, seed: int = 0
) -> MeanDifference:
    """Mean over pairs of different prompts of [prompts, prompts] distances, base, aligned and aligned - base.

    In a resample a prompt drawn twice is not a pair with itself: its distance of zero would pull the interval down.
    """
    draws = prompt_draws(len(base), bootstrap=bootstrap, seed=seed)
    once = np.ones((1, len(base)))
    estimates = []
    for matrix in (base, aligned, aligned - base):
        value = float(_mean_over_pairs(once, matrix)[0])
        estimates.append(Estimate(value, *interval(_mean_over_pairs(draws, matrix))))
    return MeanDifference(*estimates, n_prompts=len(base))


def _mean_over_pairs(draws: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum_{i != j} w_i w_j d_ij / sum_{i != j} w_i w_j for every row w of draws [resamples, prompts]."""
    off_diagonal = matrix - np.diag(np.diag(matrix))
    pairs = draws.sum(axis=1) ** 2 - (draws**2).sum(axis=1)
    drawn = pairs > 0  # two prompts can be resampled to one prompt twice, which has no pair to measure
    return ((draws @ off_diagonal) * draws).sum(axis=1)[drawn] / pairs[drawn]


def _over_seeds(images: Images, measure: Measure) -> NDArray[np.float64]:
    """[prompts]: mean distance between pictures of one prompt."""
    seeds = len(images[0])
    return np.array([measure(row).sum() / (seeds * (seeds - 1)) for row in images])


def _across_prompts(images: Images, measure: Measure) -> NDArray[np.float64]:
    """[prompts, prompts]: distance between pictures with the same seed, averaged over seeds."""
    return np.mean([measure(pictures) for pictures in zip(*images, strict=True)], axis=0)


def _thumbnail(image: Image.Image) -> NDArray[np.float64]:
    small = image.convert("RGB").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64)


def _colour_histogram(image: Image.Image) -> NDArray[np.float64]:
    levels = (_thumbnail(image) * COLOUR_LEVELS / 256).astype(np.int64)
    bins = (levels * [COLOUR_LEVELS**2, COLOUR_LEVELS, 1]).sum(axis=-1)
    return np.bincount(bins.ravel(), minlength=COLOUR_LEVELS**3) / bins.size


def _euclidean(features: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not through the inner products: their cancellation would give equal pictures a distance above zero.
    rows = torch.from_numpy(features)
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").numpy()
