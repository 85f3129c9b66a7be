"""Pictures of one prompt as people judged them and as a reward model scores them: what accuracy is counted over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmalign.evaluation.winrate import prompt_draws

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """k >= 2 pictures of a prompt: ``labels`` of people and ``scores`` of a model, higher = better, equal = tied.

    ``preference``: of a pair, the probability that people prefer the first picture; None says what the labels say.
    ``dimensions``: name -> one number per picture, such as a rating of fidelity or the picture's saturation.
    ``sample_id`` names the row. Groups of the same ``prompt`` are resampled together.
    """

    prompt: str
    labels: Sequence[float]
    scores: Sequence[float]
    preference: float | None = None
    dimensions: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sample_id: str = ""

    def __post_init__(self) -> None:
        where = self.sample_id or repr(self.prompt)
        if len(self.labels) != len(self.scores) or len(self.labels) < 2:
            raise ValueError(
                f"{where}: {len(self.labels)} labels and {len(self.scores)} scores; there must be as many of one as of "
                "the other, and at least two"
            )
        if not np.isfinite([*self.labels, *self.scores]).all():
            raise ValueError(f"{where}: labels {list(self.labels)} and scores {list(self.scores)} must be finite")

    def divided_by(self, temperature: float) -> "Judged":
        """The same with scores / temperature."""
        return replace(self, scores=[score / temperature for score in self.scores])


def signs(values: Sequence[float] | Array) -> NDArray[np.int64]:
    """sign(v_i - v_j) of every pair i < j, in the order (0, 1), (0, 2), ..., (1, 2), ...: shape [k (k - 1) / 2]."""
    of = np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(of), 1)
    return np.sign(of[first] - of[second]).astype(np.int64)


class Clusters:
    """Resampling of prompts for sums over groups: ratio = sum of numerators / sum of denominators, with its draws."""

    def __init__(self, prompts: Sequence[str], *, bootstrap: int, seed: int) -> None:
        names = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        self.members = np.array([names[prompt] for prompt in prompts], dtype=np.int64)
        self.count = len(names)
        self._draws = prompt_draws(self.count, bootstrap=bootstrap, seed=seed) if self.count > 1 else None

    def draws_of_ratio(self, numerators: Array, denominators: Array) -> Array | None:
        """[bootstrap'] ratios over resampled prompts, those without a denominator left out; None for one prompt."""
        if self._draws is None:
            return None
        above, below = (
            self._draws @ np.bincount(self.members, weights=values, minlength=self.count)
            for values in (np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64))
        )
        usable = below > 0
        return above[usable] / below[usable]
