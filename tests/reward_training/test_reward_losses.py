"""Losses on reward scores against their papers: hand-worked numbers, equations on plain floats, gradients, symmetry."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.losses import Objective
from mmalign.losses.signatures import LossSignature, available_losses
from mmalign.types import BranchScores, Scores
from reward_models import losses, noise_losses

LOSSES = available_losses()
LOG2, LOG3 = math.log(2), math.log(3)
F64 = torch.float64


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def ls(x: float) -> float:
    return -math.log1p(math.exp(-x))


def d(row: dict[str, Any]) -> float:
    return row["chosen_score"] - row["rejected_score"]


def entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q)


def outcomes(p: float) -> tuple[float, float, float]:
    return max(2 * p - 1, 0), 1 - abs(2 * p - 1), max(1 - 2 * p, 0)


def davidson(row, nu):
    total = math.exp(d(row) / 2) + math.exp(-d(row) / 2) + nu
    parts = [math.exp(d(row) / 2), nu, math.exp(-d(row) / 2)]
    return -sum(w * math.log(x / total) for w, x in zip(outcomes(row["preference"]), parts, strict=True))


def davidson_slope(row, nu):
    up, down = math.exp(d(row) / 2), math.exp(-d(row) / 2)
    win, _, loss = outcomes(row["preference"])
    return (up - down) / 2 / (up + down + nu) - win / 2 + loss / 2


def rao_kupper(row, theta):
    up, down = math.exp(d(row) / 2), math.exp(-d(row) / 2)  # of the paper's pi_1, pi_2 = up, down
    win, loss = up / (up + theta * down), down / (down + theta * up)
    parts = [win, 1 - win - loss, loss]
    return -sum(w * math.log(x) for w, x in zip(outcomes(row["preference"]), parts, strict=True))


def rao_kupper_slope(row, theta):
    win, tie, loss = outcomes(row["preference"])
    edge = math.log(theta)
    return -(win + tie) * sigma(edge - d(row)) + (loss + tie) * sigma(d(row) + edge)


def gaussian_bt(row, points):
    spread = math.hypot(row["chosen_std"], row["rejected_std"])
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(density * np.logaddexp(0, -(d(row) + spread * x)), x))


def gaussian_bt_slope(row, points):
    spread = math.hypot(row["chosen_std"], row["rejected_std"])
    x = np.linspace(-12, 12, 200_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float(np.trapezoid(-density / (1 + np.exp(d(row) + spread * x)), x))


def gpm(row, tau):
    a, b = row["chosen_features"], row["rejected_features"]
    skew = np.kron(np.eye(len(a) // 2), [[0, 1], [-1, 0]])
    return -ls(float(np.array(a) @ skew @ np.array(b)) / tau)


def pal_a(row, margin):
    near, far = (math.dist(row[f"{side}_features"], row["ideal_point"]) for side in ("chosen", "rejected"))
    return max(0.0, margin - (far - near))


def pal_b(row):
    def cosine(x, y):
        return float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))

    ideal = row["ideal_direction"]
    gap = cosine(row["chosen_features"], ideal) - cosine(row["rejected_features"], ideal)
    return -ls(row["score_scale"] * gap)


def robust(row, flip_rate, unbiased):
    e = flip_rate
    if unbiased:
        return (-(1 - e) * ls(d(row)) + e * ls(-d(row))) / (1 - 2 * e)
    return -math.log((1 - e) * sigma(d(row)) + e * sigma(-d(row)))


def robust_slope(row, flip_rate, unbiased):
    e, p = flip_rate, sigma(d(row))
    if unbiased:
        return (-(1 - e) * (1 - p) - e * p) / (1 - 2 * e)
    return -(1 - 2 * e) * p * (1 - p) / (e + (1 - 2 * e) * p)


def weighted(row, power):
    lead = 2 * row["preference"] - 1
    return -(abs(lead) ** power) * ls(d(row) if lead >= 0 else -d(row))


def weighted_slope(row, power):
    lead = 2 * row["preference"] - 1
    return -(abs(lead) ** power) * (sigma(-d(row)) if lead >= 0 else -sigma(d(row)))


def by_part(row):
    """(number, loss) of every dimension with a label."""
    sides = zip(row["chosen_parts"], row["rejected_parts"], row["part_preference"], strict=True)
    return [(k, -p * ls(a - b) - (1 - p) * ls(b - a)) for k, (a, b, p) in enumerate(sides) if not math.isnan(p)]


def multi(row):
    losses_of = [loss for _, loss in by_part(row)]
    return sum(losses_of) / max(1, len(losses_of))


def uncertain_multi(row):
    s = row["part_log_variance"]
    losses_of = [math.exp(-s[k]) * loss + s[k] / 2 for k, loss in by_part(row)]
    return sum(losses_of) / max(1, len(losses_of))


def mixture(row):
    sides = zip(row["chosen_parts"], row["rejected_parts"], row["part_weights"], strict=True)
    return -math.log(sum(w * sigma(a - b) for a, b, w in sides))


@dataclass(frozen=True)
class Case:
    """``worked``: (inputs, keywords, expected) by hand. ``slope``: d loss / d chosen_score = - d / d rejected_score."""

    keywords: dict[str, Any]
    equation: Callable[..., float]
    slope: Callable[..., float] | None
    worked: tuple[tuple[dict[str, list[Any]], dict[str, Any], list[float]], ...]
    wrong: dict[str, Any]


def pair(gap: float, **more: list[Any]) -> dict[str, list[Any]]:
    return {"chosen_score": [gap + 1], "rejected_score": [1.0], **more}


CASES: dict[str, Case] = {
    "bradley_terry": Case(
        {"margin": 0.57},
        lambda row, margin: -ls(d(row) - margin),
        lambda row, margin: -sigma(margin - d(row)),
        ((pair(0.0), {}, [LOG2]), (pair(2.0), {}, [0.126928011043]), (pair(2.0), {"margin": 2.0}, [LOG2])),
        {"margin": -1.0},
    ),
    "margin_bradley_terry": Case(
        {},
        lambda row: -ls(d(row) - row["margin"]),
        lambda row: -sigma(row["margin"] - d(row)),
        ((pair(3.0, margin=[1.0]), {}, [0.126928011043]), (pair(1.0, margin=[1.0]), {}, [LOG2])),
        {},
    ),
    "preference_ce": Case(
        {},
        lambda row: -row["preference"] * ls(d(row)) - (1 - row["preference"]) * ls(-d(row)),
        lambda row: sigma(d(row)) - row["preference"],
        (
            (pair(LOG3, preference=[0.75]), {}, [0.562335144619]),  # the entropy of (3/4, 1/4)
            (pair(0.0, preference=[0.5]), {}, [LOG2]),
            (pair(2.0, preference=[1.0]), {}, [0.126928011043]),
        ),
        {},
    ),
    "preference_kl": Case(
        {},
        lambda row: (
            -row["preference"] * ls(d(row)) - (1 - row["preference"]) * ls(-d(row)) - entropy(row["preference"])
        ),
        lambda row: sigma(d(row)) - row["preference"],
        (
            (pair(LOG3, preference=[0.75]), {}, [0.0]),
            (pair(0.0, preference=[0.5]), {}, [0.0]),
            (pair(0.0, preference=[1.0]), {}, [LOG2]),
        ),
        {},
    ),
    "davidson": Case(
        {"nu": 0.7},
        davidson,
        davidson_slope,
        (
            (pair(0.0, preference=[0.5]), {"nu": 1.0}, [LOG3]),
            (pair(0.0, preference=[1.0]), {"nu": 2.0}, [math.log(4)]),
            (pair(2 * LOG2, preference=[1.0]), {"nu": 1.5}, [LOG2]),  # 2 / (2 + 1/2 + 3/2)
        ),
        {"nu": 0.0},
    ),
    "rao_kupper": Case(
        {"theta": 1.8},
        rao_kupper,
        rao_kupper_slope,
        (
            (pair(0.0, preference=[1.0]), {"theta": 2.0}, [LOG3]),
            (pair(0.0, preference=[0.5]), {"theta": 2.0}, [LOG3]),  # 3 * 1/3 * 1/3
            (pair(LOG2, preference=[1.0]), {"theta": 2.0}, [LOG2]),
        ),
        {"theta": 1.0},
    ),
    "gaussian_bt": Case(
        {"points": 48},
        gaussian_bt,
        gaussian_bt_slope,
        (
            (pair(0.0, chosen_std=[0.0], rejected_std=[0.0]), {}, [LOG2]),
            (pair(2.0, chosen_std=[0.0], rejected_std=[0.0]), {}, [0.126928011043]),
        ),
        {"points": 1},
    ),
    "gpm": Case(
        {"tau": 0.9},
        gpm,
        None,
        (
            ({"chosen_features": [[1.0, 0.0]], "rejected_features": [[0.0, 1.0]]}, {"tau": 0.5}, [0.126928011043]),
            ({"chosen_features": [[1.0, 2.0]], "rejected_features": [[1.0, 2.0]]}, {}, [LOG2]),
        ),
        {"tau": 0.0},
    ),
    "pal_a": Case(
        {"margin": 1.3},
        pal_a,
        None,
        (
            (
                {"chosen_features": [[3.0, 4.0]], "rejected_features": [[0.0, 5.5]], "ideal_point": [[0.0, 0.0]]},
                {},
                [0.5],
            ),
            (
                {"chosen_features": [[0.0, 0.0]], "rejected_features": [[0.0, 5.5]], "ideal_point": [[0.0, 0.0]]},
                {},
                [0.0],
            ),
        ),
        {"margin": 0.0},
    ),
    "pal_b": Case(
        {},
        pal_b,
        None,
        (
            (
                {
                    "chosen_features": [[7.0, 0.0]],
                    "rejected_features": [[0.0, 2.0]],
                    "ideal_direction": [[3.0, 0.0]],
                    "score_scale": [2.0],
                },
                {},
                [0.126928011043],
            ),
        ),
        {},
    ),
    "robust_bradley_terry": Case(
        {"flip_rate": 0.2, "unbiased": False},
        robust,
        robust_slope,
        (
            (pair(0.0), {"flip_rate": 0.3}, [LOG2]),
            (pair(LOG3), {"flip_rate": 0.25}, [-math.log(0.625)]),  # 3/4 * 3/4 + 1/4 * 1/4
            (pair(LOG3), {"flip_rate": 0.25, "unbiased": True}, [-math.log(4) / 2 - 1.5 * math.log(0.75)]),
            (pair(2.0), {"flip_rate": 0.0}, [0.126928011043]),
        ),
        {"flip_rate": 0.5},
    ),
    "weighted_bradley_terry": Case(
        {"power": 2.0},
        weighted,
        weighted_slope,
        (
            (pair(2.0, preference=[1.0]), {}, [0.126928011043]),
            (pair(2.0, preference=[0.75]), {}, [0.126928011043 / 2]),
            (pair(-2.0, preference=[0.0]), {}, [0.126928011043]),
            (pair(2.0, preference=[0.5]), {}, [0.0]),
        ),
        {"power": 0.0},
    ),
    "multi_bradley_terry": Case(
        {},
        multi,
        None,
        (
            (
                {
                    "chosen_parts": [[2.0, 5.0, LOG3]],
                    "rejected_parts": [[0.0, 9.0, 0.0]],
                    "part_preference": [[1.0, math.nan, 0.75]],
                },
                {},
                [(0.126928011043 + 0.562335144619) / 2],
            ),
        ),
        {},
    ),
    "uncertain_multi_bradley_terry": Case(
        {},
        uncertain_multi,
        None,
        (
            (
                {
                    "chosen_parts": [[2.0, 5.0]],
                    "rejected_parts": [[0.0, 9.0]],
                    "part_preference": [[1.0, math.nan]],
                    "part_log_variance": [[LOG2, 7.0]],
                },
                {},
                [0.126928011043 / 2 + LOG2 / 2],
            ),
        ),
        {},
    ),
    "mixture_bradley_terry": Case(
        {},
        mixture,
        None,
        (
            (
                {"chosen_parts": [[0.0, LOG3]], "rejected_parts": [[0.0, 0.0]], "part_weights": [[0.5, 0.5]]},
                {},
                [-math.log(0.625)],
            ),
        ),
        {},
    ),
}
ALL = pytest.mark.parametrize("name", sorted(CASES))
LABELS = ("preference", "margin", "part_preference")
LABELLED = pytest.mark.parametrize("name", ["preference_ce", "preference_kl", "davidson", "rao_kupper"])


def inputs_of(name: str, rows: int = 6, dtype: torch.dtype = F64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for argument in LossSignature.of(LOSSES[name]).tensors:
        shape = (rows, 4) if argument.endswith(("features", "point", "direction")) or "part" in argument else (rows,)
        values = torch.randn(*shape, generator=draw, dtype=F64)
        if argument == "preference":
            values = torch.tensor([1.0, 0.5, 0.75, 0.6, 1.0, 0.5], dtype=F64)[:rows]
        if argument == "part_preference":  # one label is missing, one row has none
            values = values.sigmoid()
            values[0, 1], values[-1] = math.nan, math.nan
        if argument == "part_weights":
            values = values.softmax(dim=-1)
        made[argument] = (values.abs() if argument.endswith("std") else values).to(dtype)
    return made


def rows_of(inputs: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [
        {name: value[row].tolist() for name, value in inputs.items()} for row in range(len(next(iter(inputs.values()))))
    ]


def test_every_loss_is_installed_and_has_a_row() -> None:
    installed = {entry.name for entry in entry_points(group="mmalign.losses") if "reward_models" in entry.value}
    assert installed == set(CASES)
    for name in CASES:
        modules = [module for module in (losses, noise_losses) if hasattr(module, name)]
        assert [getattr(module, name) for module in modules] == [LOSSES[name]]


@ALL
def test_signature_is_the_contract(name: str) -> None:
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} == set(CASES[name].keywords)
    assert all(p.default is p.empty for p in parameters if p.kind is not p.KEYWORD_ONLY)
    summary = inspect.cleandoc(LOSSES[name].__doc__).splitlines()[0]
    assert any(symbol in summary for symbol in "-(=")
    needed = {
        key: CASES[name].keywords[key]
        for key, p in LossSignature.of(LOSSES[name]).keywords.items()
        if p.default is p.empty
    }
    Objective([{"loss": name, **needed}])  # its defaults are valid


@ALL
def test_numbers_worked_by_hand(name: str) -> None:
    for inputs, keywords, expected in CASES[name].worked:
        tensors = {key: torch.tensor(value, dtype=F64) for key, value in inputs.items()}
        got = LOSSES[name](**tensors, **keywords)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=0, atol=2e-9)


@ALL
def test_equation_and_gradient_in_float64(name: str) -> None:
    case, inputs = CASES[name], inputs_of(name)
    got = LOSSES[name](**inputs, **case.keywords)
    expected = [case.equation(row, **case.keywords) for row in rows_of(inputs)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=F64), rtol=1e-7, atol=1e-9)
    moving = {key: value.requires_grad_() for key, value in inputs.items() if key not in LABELS}
    got = LOSSES[name](**inputs, **case.keywords)
    grads = dict(zip(moving, torch.autograd.grad(got.sum(), list(moving.values())), strict=True))
    if case.slope is not None:
        slopes = torch.tensor([case.slope(row, **case.keywords) for row in rows_of(inputs)], dtype=F64)
        torch.testing.assert_close(grads["chosen_score"], slopes, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(grads["rejected_score"], -slopes, rtol=1e-6, atol=1e-9)
    others = [key for key in moving if not key.endswith("_score")]
    if others:
        function = LOSSES[name]
        fixed = {key: value for key, value in inputs.items() if key not in others}
        assert torch.autograd.gradcheck(
            lambda *given: function(**fixed, **dict(zip(others, given, strict=True)), **case.keywords),
            [inputs[key] for key in others],
        )


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_at_extremes_and_computed_in_full_precision(name: str, dtype: torch.dtype) -> None:
    for sign in (1e4, -1e4, 0.0):
        inputs = inputs_of(name, rows=2, dtype=dtype)
        for key, value in inputs.items():
            if key.endswith(("score", "features", "point", "direction", "_parts")):
                inputs[key] = torch.full_like(value, -sign if key.startswith("rejected") else sign)
            elif key.endswith("std"):
                inputs[key] = torch.full_like(value, abs(sign))
        moving = [value.requires_grad_() for key, value in inputs.items() if key not in LABELS]
        got = LOSSES[name](**inputs, **CASES[name].keywords)
        assert got.dtype == torch.float32
        assert got.isfinite().all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(got.sum(), moving))


@ALL
def test_rows_are_independent_and_no_keyword_is_dead(name: str) -> None:
    case, inputs, order = CASES[name], inputs_of(name), torch.tensor([3, 0, 5, 1, 4, 2])
    got = LOSSES[name](**inputs, **case.keywords)
    permuted = LOSSES[name](**{key: value[order] for key, value in inputs.items()}, **case.keywords)
    torch.testing.assert_close(permuted, got[order], rtol=1e-12, atol=1e-12)
    for key, value in case.keywords.items():
        if key == "points":  # how exact, not what
            continue
        if isinstance(value, bool):
            assert (LOSSES[name](**inputs, **(case.keywords | {key: not value})) - got).abs().max() > 1e-6
            continue
        changed = LOSSES[name](**inputs, **(case.keywords | {key: value + 0.1}))
        assert (changed - got).abs().max() > 1e-6
        with pytest.raises(ValueError, match=key):
            LOSSES[name](**inputs, **(case.keywords | case.wrong))


@LABELLED
def test_exchanging_the_sides_and_the_label_changes_nothing_and_a_tie_is_cheapest_when_equal(name: str) -> None:
    loss, inputs = LOSSES[name], inputs_of(name)
    turned = loss(inputs["rejected_score"], inputs["chosen_score"], 1 - inputs["preference"])
    torch.testing.assert_close(loss(**inputs), turned)
    gaps = torch.linspace(-3, 3, 61, dtype=F64)
    ties = loss(gaps, torch.zeros_like(gaps), torch.full_like(gaps, 0.5))
    assert int(ties.argmin()) == 30
    torch.testing.assert_close(ties, ties.flip(0))


@pytest.mark.parametrize("name", ["davidson", "rao_kupper"])
def test_win_tie_and_loss_are_all_there_is(name: str) -> None:
    gaps = torch.linspace(-5, 5, 21, dtype=F64)
    total = sum(
        LOSSES[name](gaps, torch.zeros_like(gaps), torch.full_like(gaps, label)).neg().exp()
        for label in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(total, torch.ones_like(gaps))


def test_a_general_preference_can_go_round_in_circles() -> None:
    """Rock, paper, scissors: three directions a third of a circle apart, each of which beats the next."""
    angles = torch.tensor([0.0, 2 * math.pi / 3, 4 * math.pi / 3], dtype=F64)
    things = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert (losses.gpm(things, things.roll(-1, 0)) < LOG2).all()
    apart = losses.gpm(things.roll(-1, 0), things) - losses.gpm(things, things.roll(-1, 0))
    torch.testing.assert_close(apart, torch.full((3,), math.sin(2 * math.pi / 3) / 0.1, dtype=F64))


def test_terms_read_rewards_of_their_branches_and_leave_absent_rows_out() -> None:
    objective = Objective([{"loss": "bradley_terry"}, {"loss": "preference_ce", "coefficient": 0.5}])
    scores = Scores(
        {"chosen": BranchScores(torch.tensor([2.0, 9.0])), "rejected": BranchScores(torch.tensor([0.0, 0.0]))},
        preference=torch.tensor([1.0, 1.0]),
        present={"chosen": torch.tensor([True, False]), "rejected": torch.tensor([True, False])},
    )
    assert objective(scores).loss.item() == pytest.approx(1.5 * 0.126928011043)
    assert objective.reads_rewards == ("bradley_terry", "preference_ce")
    assert objective.reward_beta == 1.0
    assert not objective.needs_reference
    with pytest.raises(ValueError, match="score has no effect on bradley_terry"):
        Objective([{"loss": "bradley_terry", "score": "mean"}])


def test_a_dimension_without_a_label_has_no_gradient() -> None:
    inputs = inputs_of("multi_bradley_terry")
    chosen = inputs["chosen_parts"].requires_grad_()
    grad = torch.autograd.grad(LOSSES["multi_bradley_terry"](**inputs).sum(), chosen)[0]
    assert torch.equal(grad == 0, inputs["part_preference"].isnan())


def test_the_unbiased_loss_has_the_expectation_of_clean_labels() -> None:
    """A label kept with probability 1 - e and exchanged with e costs, on average, what the clean label does."""
    gaps, zeros, e = torch.linspace(-4, 4, 9, dtype=F64), torch.zeros(9, dtype=F64), 0.2
    loss = LOSSES["robust_bradley_terry"]
    kept, exchanged = (loss(*sides, flip_rate=e, unbiased=True) for sides in ((gaps, zeros), (zeros, gaps)))
    torch.testing.assert_close((1 - e) * kept + e * exchanged, losses.bradley_terry(gaps, zeros))


def test_a_gaussian_win_is_as_likely_as_the_average_says() -> None:
    inputs = inputs_of("gaussian_bt")
    turned = {
        key: inputs[key.replace("chosen", "x").replace("rejected", "chosen").replace("x", "rejected")] for key in inputs
    }
    wins, loses = losses.gaussian_probability(**inputs), losses.gaussian_probability(**turned)
    torch.testing.assert_close(wins + loses, torch.ones_like(wins))
    draws = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    spread = torch.hypot(inputs["chosen_std"], inputs["rejected_std"])
    sampled = torch.sigmoid(inputs["chosen_score"] - inputs["rejected_score"] + spread * draws).mean(0)
    torch.testing.assert_close(wins, sampled, rtol=0, atol=4e-3)
