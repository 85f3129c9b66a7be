"""What a reward follows: agreement with each dimension that was rated, and with what can be counted in the pixels.

A dimension is a number per picture: a rating of fidelity or alignment from the data, or saturation, contrast,
sharpness and brightness. A reward that follows colour more than people do will be bought with colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmalign.evaluation.accuracy import Accuracy, pairwise_accuracy
from mmalign.evaluation.judged import Judged, signs
from mmalign.evaluation.rankings import kendall_tau_b


@dataclass(frozen=True)
class Probe:
    """``reward``: how often the reward prefers the picture with more of the dimension. ``people``: how often people do.

    Both under the rule mmalign, over the pairs that differ in the dimension. ``tau_b``: mean over groups, of the
    reward's scores and the dimension; None where it is nowhere defined.
    """

    name: str
    reward: Accuracy
    people: Accuracy | None
    tau_b: float | None


def dimension_probes(groups: Sequence[Judged], *, bootstrap: int = 2000, seed: int = 0) -> list[Probe]:
    """A probe for every dimension that any group has, in the order of their first appearance."""
    names = dict.fromkeys(name for group in groups for name in group.dimensions)
    probes = []
    for name in names:
        having = [group for group in groups if name in group.dimensions]
        of_reward = [replace(group, labels=group.dimensions[name], preference=None) for group in having]
        if not any(signs(group.labels).any() for group in of_reward):
            continue
        of_people = [
            replace(group, scores=judged.labels)
            for group, judged in zip(of_reward, having, strict=True)
            if signs(judged.labels).any()
        ]
        people = None
        if any(signs(group.labels).any() for group in of_people):
            people = pairwise_accuracy(of_people, bootstrap=bootstrap, seed=seed)
        taus = [tau for one in of_reward if (tau := kendall_tau_b(one.labels, one.scores)) is not None]
        mean = float(np.mean(taus)) if taus else None
        probes.append(Probe(name, pairwise_accuracy(of_reward, bootstrap=bootstrap, seed=seed), people, mean))
    return probes


def rated_dimensions(extras: Mapping[str, object], pictures: int) -> dict[str, list[float]]:
    """Those extras of a row that hold one finite number per picture, by name: ImageRewardDB's ratings are such."""
    found: dict[str, list[float]] = {}
    for name, values in extras.items():
        if not isinstance(values, list | tuple) or len(values) != pictures:
            continue
        numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(numbers) == pictures and np.isfinite(numbers).all():
            found[name] = [float(value) for value in numbers]
    return found
