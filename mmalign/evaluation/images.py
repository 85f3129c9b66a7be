"""Base against aligned pictures of the same prompts and seeds: who wins, what got better, what it cost in variety."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from mmalign.evaluation.diversity import Embed, Images, measure_diversity
from mmalign.evaluation.scorers import ImageScorer
from mmalign.evaluation.table import comparison_table
from mmalign.evaluation.winrate import Estimate, MeanDifference, WinRate, mean_difference, paired_win_rate

RULES = {
    "pairing": "same prompts and seeds on both sides",
    "ties": "equal scores count one half",
    "interval": "95 % percentile bootstrap over prompts",
}


@dataclass(frozen=True)
class ImageEvaluation:
    """Everything measured between a base and an aligned model; attributes only where the scorer judges them.

    ``score``: mean score. ``all_correct``: share of pictures with every attribute right. ``attributes``: share of
    pictures with that attribute right, over the prompts that have it. ``diversity``: mean distances, see there.
    """

    scorer: str
    n_prompts: int
    n_seeds: int
    win_rate: WinRate
    score: MeanDifference
    all_correct: MeanDifference | None
    attributes: dict[str, MeanDifference]
    diversity: dict[str, MeanDifference]
    bootstrap: int
    seed: int

    @property
    def size(self) -> str:
        """``200 prompts x 2 seeds``."""
        return f"{self.n_prompts} prompts x {self.n_seeds} seed{'s' * (self.n_seeds > 1)}"

    def summary(self) -> str:
        """One line: ``win rate 0.612 [0.561, 0.664] by oracle ...``."""
        wins, counts = (
            self.win_rate,
            f"{self.win_rate.wins} won, {self.win_rate.ties} tied, {self.win_rate.losses} lost",
        )
        line = f"win rate {wins} by {self.scorer} over {self.size} ({counts})"
        if self.all_correct is None:
            return line
        change = self.all_correct
        return f"{line}; all correct {change.base.value:.3f} -> {change.aligned.value:.3f} ({change.difference})"

    def print(self, console: Console) -> None:
        """The table of :func:`mmalign.evaluation.table.comparison_table`, then the summary line."""
        console.print(comparison_table(self))
        console.print(self.summary(), soft_wrap=True, markup=False, highlight=False)

    def to_json(self) -> str:
        """JSON text with ``kind: images`` and the rules the numbers follow; :meth:`from_json` reads it back."""
        return json.dumps({"kind": "images", **asdict(self), "rules": RULES}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ImageEvaluation":
        """The evaluation that :meth:`to_json` wrote; anything else is a ValueError."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.pop("kind", None) != "images":
            raise ValueError('not an image evaluation: its JSON has "kind": "images"')
        data.pop("rules", None)
        try:
            data["win_rate"] = WinRate(**data["win_rate"])
            data["score"] = _read_difference(data["score"])
            data["all_correct"] = data["all_correct"] and _read_difference(data["all_correct"])
            for table in ("attributes", "diversity"):
                data[table] = {name: _read_difference(row) for name, row in data[table].items()}
            return cls(**data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an image evaluation: {type(error).__name__}: {error}") from error


def evaluate_images(
    base_images: Images,
    aligned_images: Images,
    prompts: Sequence[str],
    scorer: ImageScorer,
    *,
    embed: Embed | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> ImageEvaluation:
    """Compare pictures [prompts][seeds] of two models. ``progress`` is called with the number of pictures just scored.

    ``embed``: [n, d] embeddings of n pictures, for a diversity of content beside that of pixels and colours.
    """
    _check_images(base_images, aligned_images, prompts)
    draws = {"bootstrap": bootstrap, "seed": seed}
    scored = [_score(images, prompts, scorer, batch_size, progress) for images in (base_images, aligned_images)]
    scores = [side.scores for side in scored]
    all_correct, attributes = _compare_attributes([side.attributes for side in scored], prompts, draws)
    return ImageEvaluation(
        scorer=scorer.name,
        n_prompts=len(prompts),
        n_seeds=len(base_images[0]),
        win_rate=paired_win_rate(*scores, **draws),
        score=mean_difference(*scores, **draws),
        all_correct=all_correct,
        attributes=attributes,
        diversity=measure_diversity(base_images, aligned_images, embed=embed, **draws),
        **draws,
    )


@dataclass(frozen=True)
class _Scored:
    scores: NDArray[np.float64]
    attributes: list[list[Mapping[str, bool]]] | None


def _score(
    images: Images, prompts: Sequence[str], scorer: ImageScorer, batch_size: int, progress: Callable[[int], None] | None
) -> _Scored:
    seeds = len(images[0])
    pictures = [picture for row in images for picture in row]
    captions = [prompt for prompt in prompts for _ in range(seeds)]
    scores, attributes = [], []
    for start in range(0, len(pictures), batch_size):
        batch = slice(start, start + batch_size)
        judged = scorer(captions[batch], pictures[batch])
        if len(judged.scores) != len(pictures[batch]):
            raise ValueError(
                f"scorer {scorer.name!r} gave {len(judged.scores)} scores for {len(pictures[batch])} pictures"
            )
        scores.extend(judged.scores)
        attributes.extend(judged.attributes or [])
        if progress is not None:
            progress(len(judged.scores))
    rows = [attributes[start : start + seeds] for start in range(0, len(attributes), seeds)]
    return _Scored(np.array(scores, dtype=np.float64).reshape(len(prompts), seeds), rows or None)


def _compare_attributes(
    sides: Sequence[list[list[Mapping[str, bool]]] | None], prompts: Sequence[str], draws: dict[str, int]
) -> tuple[MeanDifference | None, dict[str, MeanDifference]]:
    base, aligned = sides
    if base is None or aligned is None:
        return None, {}
    for prompt, *rows in zip(prompts, base, aligned, strict=True):
        if len({frozenset(correct) for row in rows for correct in row}) != 1:
            raise ValueError(f"the scorer judged different attributes for pictures of one prompt, {prompt!r}")
    all_correct = [[[all(correct.values()) for correct in row] for row in side] for side in (base, aligned)]
    names = dict.fromkeys(name for row in base for name in row[0])  # in the order the scorer names them
    table = {}
    for name in names:
        values = [[[correct[name] for correct in row] for row in side if name in row[0]] for side in (base, aligned)]
        if len(values[0]) > 1:  # one prompt has no interval over prompts
            table[name] = mean_difference(*values, **draws)
    return mean_difference(*all_correct, **draws), table


def _read_difference(data: Mapping) -> MeanDifference:
    sides = {side: Estimate(**data[side]) for side in ("base", "aligned", "difference")}
    return MeanDifference(**sides, n_prompts=data["n_prompts"])


def _check_images(base: Images, aligned: Images, prompts: Sequence[str]) -> None:
    if not (len(base) == len(aligned) == len(prompts) > 1):
        raise ValueError(
            f"evaluation needs the same two or more prompts on both sides, got {len(prompts)} prompts, "
            f"{len(base)} rows of base and {len(aligned)} rows of aligned pictures"
        )
    sizes = {len(row) for side in (base, aligned) for row in side}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"every prompt needs the same number of seeds, one or more, on both sides; got {sorted(sizes)}"
        )
    for side, rows in (("base", base), ("aligned", aligned)):
        if not all(isinstance(picture, Image.Image) for row in rows for picture in row):
            raise ValueError(f"{side} pictures must be PIL images in lists [prompts][seeds]")
