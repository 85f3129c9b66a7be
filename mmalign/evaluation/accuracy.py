"""How often a reward model agrees with people about two pictures, under a rule that is always named.

The same scores give numbers that differ by several points under different rules, so a number without its rule means
little. A rule says four things: whether pairs are counted over all prompts (micro) or within each prompt first
(macro), what a pair counts that people left undecided, what a pair counts that the model scores alike, and where the
rule comes from. ``RULES`` holds mmalign's own and those of the published tables, computed as the published code does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmalign.evaluation.judged import Array, Clusters, Judged, signs
from mmalign.evaluation.winrate import interval

Credits = tuple[float, int]
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Rule:
    """``average``: over pairs (micro) or over groups (macro). ``human_ties``, ``model_ties``: what such pairs count.

    ``source``: where the rule was published. ``credits`` gives (points, pairs counted) of the pairs of one group.
    """

    average: Literal["micro", "macro"]
    human_ties: str
    model_ties: str
    source: str
    credits: Callable[[Judged, float], Credits]
    needs_threshold: bool = False


def _dropped_half(group: Judged, _: float) -> Credits:
    human, model = signs(group.labels), signs(group.scores)
    decided = human != 0
    return float((human[decided] == model[decided]).sum() + 0.5 * (model[decided] == 0).sum()), int(decided.sum())


def _dropped_wrong(group: Judged, _: float) -> Credits:
    human, model = signs(group.labels), signs(group.scores)
    decided = human != 0
    return float((human[decided] == model[decided]).sum()), int(decided.sum())


def _counted_wrong(group: Judged, _: float) -> Credits:
    right, _pairs = _dropped_wrong(group, 0.0)
    return right, len(signs(group.labels))


def _inversions(group: Judged, _: float) -> Credits:
    """Model ties go to whichever picture comes first, as a stable sort of the scores would."""
    human = signs(group.labels)
    places = np.argsort(-np.asarray(group.scores, dtype=np.float64), kind="stable")
    ranks = np.empty(len(places))
    ranks[places] = np.arange(len(places))
    return float(len(human) - (human * signs(-ranks) == -1).sum()), len(human)


def _three_way(group: Judged, threshold: float) -> Credits:
    """Probabilities are a softmax over two scores, so p_0 - p_1 = tanh((s_0 - s_1) / 2)."""
    human = signs(group.labels)
    scores = np.asarray(group.scores, dtype=np.float64)
    first, second = np.triu_indices(len(scores), 1)
    apart = np.tanh((scores[first] - scores[second]) / 2)
    model = np.where(np.abs(apart) <= threshold, 0, np.sign(apart))
    half = (human == 0) ^ (model == 0)
    return float((human == model).sum() + 0.5 * half.sum()), len(human)


RULES: Mapping[str, Rule] = {
    "mmalign": Rule("micro", "left out", "half", "mmalign: chance and a constant score both give 0.5", _dropped_half),
    "imagereward": Rule("micro", "left out", "wrong", "THUDM/ImageReward test.py:17-39 (acc)", _dropped_wrong),
    "hpsv2_imagereward": Rule(
        "macro", "left out", "wrong",
        "tgxs002/HPSv2 hpsv2/src/training/train.py:456-479 (calc_ImageReward), mean over prompts in "
        "hpsv2/evaluation.py:41-75", _dropped_wrong,
    ),
    "hpdv2": Rule(
        "macro", "correct", "first picture wins",
        "tgxs002/HPSv2 hpsv2/src/training/train.py:358-368 (inversion_score) on the argsort of "
        "hpsv2/evaluation.py:99-103", _inversions,
    ),
    "pickapic": Rule(
        "micro", "right where the model ties, else half", "half where people did not tie",
        "yuvalkirstain/PickScore trainer/scripts/eval_preference_predictor.py:66-117, threshold from validation "
        ":150-161", _three_way, needs_threshold=True,
    ),
    "hpsv3": Rule("micro", "left out", "wrong", "hpsv3 1.0.0 evaluate/evaluate.py (pair mode)", _dropped_wrong),
    "genai_bench": Rule(
        "micro", "left out", "wrong",
        "CodeGoat24/UnifiedReward benchmark_evaluation/Qwen_evaluation/test_qwen_genAI_bench_image.py "
        "(Acc. w/o tie)", _dropped_wrong,
    ),
    "genai_bench_with_ties": Rule(
        "micro", "wrong", "wrong",
        "CodeGoat24/UnifiedReward benchmark_evaluation/Qwen_evaluation/test_qwen_genAI_bench_image.py (Acc.): a tie is "
        "skipped and stays in the denominator", _counted_wrong,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Accuracy:
    """Points per pair under ``rule``, with its 95 % interval over prompts (None for one prompt) and what was counted.

    ``n_pairs`` counts what is in the denominator, ``n_groups`` the groups with such a pair, of ``n_prompts`` prompts.
    """

    rule: str
    value: float
    low: float | None
    high: float | None
    n_prompts: int
    n_groups: int
    n_pairs: int
    n_human_ties: int
    n_model_ties: int
    average: str
    human_ties: str
    model_ties: str
    source: str
    threshold: float | None = None

    def __str__(self) -> str:
        ends = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{ends}"


def pairwise_accuracy(
    groups: Sequence[Judged],
    rule: str = "mmalign",
    *,
    threshold: float | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Accuracy:
    """Accuracy under one of ``RULES``; the interval is a percentile bootstrap that resamples prompts.

    ``threshold``: of ``pickapic`` only, from :func:`best_threshold`. Groups without a pair that counts (all tied) are
    left out of a macro mean; the published code for ``hpsv2_imagereward`` divides by zero there.
    """
    how = _checked(rule, threshold)
    points, pairs = _points(groups, how, threshold or 0.0)
    if not pairs.sum():
        raise ValueError(
            f"rule {rule}: none of the {len(groups)} groups has a pair that counts; people tied all of them"
        )
    counted = pairs > 0
    above, below = (points, pairs) if how.average == "micro" else (_share(points, pairs), counted.astype(float))
    draws = Clusters([group.prompt for group in groups], bootstrap=bootstrap, seed=seed).draws_of_ratio(above, below)
    low, high = (None, None) if draws is None else interval(draws)
    return Accuracy(
        rule=rule,
        value=float(above.sum() / below.sum()),
        low=low,
        high=high,
        n_prompts=len({group.prompt for group in groups}),
        n_groups=int(counted.sum()),
        n_pairs=int(pairs.sum()),
        n_human_ties=sum(int((signs(group.labels) == 0).sum()) for group in groups),
        n_model_ties=sum(int((signs(group.scores) == 0).sum()) for group in groups),
        **{name: getattr(how, name) for name in ("average", "human_ties", "model_ties", "source")},
        threshold=threshold,
    )


def best_threshold(validation: Sequence[Judged]) -> float:
    """The one of 0, 0.1, ..., 1 under which rule ``pickapic`` gives most points; the first such."""
    if not validation:
        raise ValueError("a threshold is chosen on validation pairs, and there are none")
    totals = [math.fsum(_three_way(group, threshold)[0] for group in validation) for threshold in THRESHOLDS]
    return THRESHOLDS[int(np.argmax(totals))]


def _checked(rule: str, threshold: float | None) -> Rule:
    if rule not in RULES:
        raise ValueError(f"there is no accuracy rule {rule!r}; choose one of {', '.join(RULES)}")
    how = RULES[rule]
    if how.needs_threshold and threshold is None:
        raise ValueError(
            f"rule {rule} predicts ties below a threshold that is chosen on validation pairs: give validation data, or "
            "the threshold"
        )
    if threshold is not None and not how.needs_threshold:
        raise ValueError(f"threshold={threshold:g} would be ignored by rule {rule}, which predicts no ties")
    return how


def _points(groups: Sequence[Judged], rule: Rule, threshold: float) -> tuple[Array, Array]:
    if not groups:
        raise ValueError("there are no judged groups to count")
    credits = np.array([rule.credits(group, threshold) for group in groups], dtype=np.float64)
    return credits[:, 0], credits[:, 1]


def _share(points: Array, pairs: Array) -> Array:
    return np.divide(points, pairs, out=np.zeros_like(points), where=pairs > 0)
