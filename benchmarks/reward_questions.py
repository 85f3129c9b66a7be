"""What reward models are asked in ``rewards_evidence``: rows to train on with known noise, and pairs with gold answers.

``raters``: prefer the brighter picture with probability sigma((luma_0 - luma_1) / 0.1), which no caption tells, so that
a CLIP starts at chance. ``users``: two groups, of whom one always prefers the brighter picture and one the darker.
``cycle``: backgrounds beat each other in a circle, where the best score of single pictures is right in 9 of 12.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmalign.data import table_of, write_canonical
from mmalign.playground.pairs import make_pairs, write_pickapic
from mmalign.playground.rankings import make_rankings
from mmalign.playground.reward_rows import OPPOSITES, Groups, rendered
from mmalign.playground.scene import held_out_prompts, training_prompts
from mmalign.playground.tastes import beats, bright, make_cyclic_pairs, make_user_pairs

TEMPERATURE, RATERS, CHANGED, CANDIDATES = 0.1, 5, 0.8, 4
USERS_PER_TASTE = 2


@dataclass(frozen=True)
class Case:
    """A pair to be judged: ``p``, the probability that the first picture is preferred, by ``user`` where it matters."""

    prompt: str
    images: tuple[Image.Image, Image.Image]
    p: float
    user: str | None = None


@dataclass(frozen=True)
class Question:
    """``write(file, pairs, labels, noise, seed)`` makes rows to train on; ``cases(many, seed)`` what is measured."""

    write: Callable[[Path, int, str, float, int], None]
    cases: Callable[[int, int], list[Case]]


def _write_raters(file: Path, pairs: int, labels: str, noise: float, seed: int) -> None:
    """Pairs with the share of five votes (``share``) or who won them (``winner``), or rankings (``ranking``).

    Rankings are drawn from the Plackett-Luce model of the same raters: luma / TEMPERATURE plus Gumbel noise, in order;
    two pairs' worth of pictures each. With ``noise``, this share of the rows has its labels exchanged or turned round.
    """
    rng = np.random.default_rng([seed, 5])
    if labels == "ranking":
        groups = _groups(pairs * 2 // CANDIDATES, CANDIDATES, seed)
        turned = {prompt for prompt, _ in groups if rng.random() < noise}

        def ranked(prompts: Sequence[str], images: Sequence[Image.Image]) -> list[float]:
            drawn = np.asarray(bright(prompts, images)) / TEMPERATURE + rng.gumbel(size=len(images))
            return (-drawn if prompts[0] in turned else drawn).tolist()

        write_canonical(table_of(make_rankings(groups, ranked, model="renderings")), file)
        return
    rows = make_pairs(_groups(pairs, 2, seed), bright, soft=True, temperature=TEMPERATURE, seed=seed)
    for row in rows:
        share = rng.binomial(RATERS, row["label_0"]) / RATERS
        share = 1 - share if rng.random() < noise else share
        row["label_0"] = share if labels == "share" else float(share > 0.5)
        row["label_1"] = 1 - row["label_0"]
        row["best_image_uid"] = row["image_0_uid" if share > 0.5 else "image_1_uid"]
    write_pickapic(rows, file)


def _write_users(file: Path, pairs: int, labels: str, noise: float, seed: int) -> None:  # noqa: ARG001
    groups = _groups(pairs // 2, 2, seed)  # every user judges all of them, so there are twice as many rows
    write_pickapic(make_user_pairs(groups, tastes=OPPOSITES, users_per_taste=USERS_PER_TASTE, seed=seed), file)


def _write_cycle(file: Path, pairs: int, labels: str, noise: float, seed: int) -> None:  # noqa: ARG001
    write_pickapic(make_cyclic_pairs(_groups(pairs, 2, seed), seed=seed), file)


def _groups(prompts: int, pictures: int, seed: int, *, held_out: bool = False) -> Groups:
    texts = (held_out_prompts if held_out else training_prompts)("single", prompts, 0 if held_out else seed)
    return rendered(texts, pictures, np.random.default_rng([seed, 11 if held_out else 7]), changed=CHANGED)


def _raters_cases(many: int, seed: int) -> list[Case]:
    cases = []
    for prompt, images in _groups(many, 2, seed, held_out=True):
        luma = bright([prompt] * 2, images)
        cases.append(Case(prompt, (images[0], images[1]), 1 / (1 + math.exp((luma[1] - luma[0]) / TEMPERATURE))))
    return cases


def _users_cases(many: int, seed: int) -> list[Case]:
    """Users 0 and 1, one of each group, on the same pictures."""
    cases = []
    for prompt, images in _groups(many // 2, 2, seed, held_out=True):
        luma = bright([prompt] * 2, images)
        likes = [float(luma[0] > luma[1]), float(luma[0] < luma[1])]
        if luma[0] != luma[1]:
            cases += [Case(prompt, (images[0], images[1]), p, str(user)) for user, p in enumerate(likes)]
    return cases


def _cycle_cases(many: int, seed: int) -> list[Case]:
    groups = _groups(many, 2, seed, held_out=True)
    contests = [(prompt, images, beats(*images[:2])) for prompt, images in groups]
    return [Case(prompt, (images[0], images[1]), float(won > 0)) for prompt, images, won in contests if won]


QUESTIONS: dict[str, Question] = {
    "raters": Question(_write_raters, _raters_cases),
    "users": Question(_write_users, _users_cases),
    "cycle": Question(_write_cycle, _cycle_cases),
}


@dataclass(frozen=True)
class Arm:
    """One objective on one question. ``labels``: what of the raters it sees; ``noises``: shares of exchanged labels;
    ``frozen``: only the head is trained."""

    question: str
    name: str
    term: dict[str, Any]
    head: dict[str, Any] = field(default_factory=lambda: {"kind": "cosine"})
    labels: str = "winner"
    noises: tuple[float, ...] = (0.0,)
    frozen: bool = False


def _arms() -> list[Arm]:
    both = (0.0, 0.2)
    shares = ("preference_ce", "preference_kl", "davidson", "rao_kupper", "weighted_bradley_terry")
    perceptron, users = {"hidden": 64}, {"hidden": 64, "groups": 2}
    points = {**users, "features": 16}
    robust = {"loss": "robust_bradley_terry", "flip_rate": 0.2}
    bt, gpm = {"loss": "bradley_terry"}, {"loss": "gpm", "tau": 0.1}
    general = {"kind": "gpm", "hidden": 64, "features": 16}
    return [
        Arm("raters", "bradley_terry", bt, noises=both),
        Arm("raters", "robust_bradley_terry", robust, noises=both[1:]),
        Arm("raters", "gaussian_bt", {"loss": "gaussian_bt"}, {"kind": "gaussian", **perceptron}, noises=both),
        *(Arm("raters", loss, {"loss": loss}, labels="share", noises=both) for loss in shares),
        *(Arm("raters", loss, {"loss": loss}, labels="ranking", noises=both) for loss in ("plackett_luce", "ranklist")),
        Arm("users", "bradley_terry", bt),
        Arm("users", "mixture", {"loss": "mixture_bradley_terry"}, {"kind": "mixture", **users}, frozen=True),
        Arm("users", "pal_a", {"loss": "pal_a"}, {"kind": "pal_a", **points}, frozen=True),
        Arm("users", "pal_b", {"loss": "pal_b"}, {"kind": "pal_b", **points}, frozen=True),
        Arm("users", "gpm", gpm, general, frozen=True),
        Arm("cycle", "bradley_terry", bt),
        Arm("cycle", "gpm", gpm, general, frozen=True),
    ]


ARMS = _arms()
