"""The rows of the table: every key of ``LOSSES`` has one, with numbers that were worked out by hand.

sigma(1) = 0.731058579, log sigma(1) = -0.313261688, log sigma(-1) = -1.313261688, log 2 = 0.693147181.
"""

import math
from typing import Any

import loss_cases as eq
from loss_cases import LOG2, PAIR, UP_DOWN, ZERO, Case, h, ls, of_margin, sigma

LS1, LSM1, S1 = -0.313261687518, -1.313261687518, 0.731058578630
SIDES = {"logratio": [1.5, 1.5], "desirable": [True, False]}
SIDES_ZERO = {"logratio": [0.0, 0.0], "desirable": [True, False]}
MEANS = {"chosen_mean_logp": [-LOG2], "rejected_mean_logp": [-LOG2]}
KTO = {"beta": 0.7, "kl": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.8}
LIST_SLOPE = "one candidate's log-ratio enters with both signs"
SIDE_SLOPE = "the sign depends on desirable; test_unpaired_sides holds it"


def three(*z: float) -> dict[str, Any]:
    return {"candidate_logratio": [list(z)], "labels": [[2.0, 1.0, 0.0]]}


CASES: dict[str, Case] = {
    "dpo": Case(
        {"beta": 0.7, "label_smoothing": 0.1},
        eq.dpo,
        of_margin(lambda row, beta, label_smoothing: beta * (sigma(beta * h(row)) - 1 + label_smoothing)),
        worked=(PAIR, {"beta": 0.5, "label_smoothing": 0.2}, [0.8 * -LS1 + 0.2 * -LSM1]),
        start=(ZERO, {"beta": 5000}, [LOG2]),
        monotone_keywords={"label_smoothing": 0.0},
        **UP_DOWN,
    ),
    "soft_dpo": Case(
        {"beta": 0.7},
        lambda row, beta: -row["preference"] * ls(beta * h(row)) - (1 - row["preference"]) * ls(-beta * h(row)),
        lambda row, beta: (
            of_margin(lambda row, beta: beta * (sigma(beta * h(row)) - row["preference"]))(row, beta=beta)
            | {"preference": -beta * h(row)}
        ),
        worked=(PAIR | {"preference": [0.75]}, {"beta": 0.5}, [0.75 * -LS1 + 0.25 * -LSM1]),
        start=(ZERO | {"preference": [0.75]}, {"beta": 2.0}, [LOG2]),
        not_monotone="its minimum is at sigma(beta h) = preference",
    ),
    "smoothed_dpo": Case(
        {"beta": 0.7, "scale": 3.0},
        lambda row, beta, scale: -ls(scale * (2 * row["preference"] - 1) * beta * h(row)),
        lambda row, beta, scale: (
            {"preference": -2 * scale * beta * h(row) * sigma(-scale * (2 * row["preference"] - 1) * beta * h(row))}
            | of_margin(
                lambda row, b: -b * sigma(-b * h(row)),
            )(row, b=scale * (2 * row["preference"] - 1) * beta)
        ),
        worked=(PAIR | {"preference": [0.75]}, {"beta": 0.5, "scale": 2.0}, [-LS1]),
        start=(ZERO | {"preference": [0.75]}, {"beta": 2.0}, [LOG2]),
        **UP_DOWN,
    ),
    "robust_dpo": Case(
        {"beta": 0.7, "label_smoothing": 0.2},
        lambda row, beta, label_smoothing: (
            (-(1 - label_smoothing) * ls(beta * h(row)) + label_smoothing * ls(-beta * h(row)))
            / (1 - 2 * label_smoothing)
        ),
        of_margin(
            lambda row, beta, label_smoothing: (
                -beta
                * ((1 - label_smoothing) * sigma(-beta * h(row)) + label_smoothing * sigma(beta * h(row)))
                / (1 - 2 * label_smoothing)
            )
        ),
        worked=(PAIR, {"beta": 0.5, "label_smoothing": 0.25}, [-0.186738312]),
        start=(ZERO, {"beta": 2.0, "label_smoothing": 0.3}, [LOG2]),
        **UP_DOWN,
    ),
    "ipo": Case(
        {"beta": 0.7},
        lambda row, beta: (h(row) - 1 / (2 * beta)) ** 2,
        of_margin(lambda row, beta: 2 * (h(row) - 1 / (2 * beta))),
        worked=(PAIR, {"beta": 0.5}, [1.0]),
        start=(ZERO, {"beta": 0.1}, [25.0]),
        not_monotone="its minimum is at h = 1 / (2 beta)",
    ),
    "hinge": Case(
        {"beta": 0.1},
        lambda row, beta: max(0.0, 1 - beta * h(row)),
        of_margin(lambda row, beta: -beta if beta * h(row) < 1 else 0.0),
        worked=(PAIR, {"beta": 0.25}, [0.5]),
        start=(ZERO, {"beta": 0.25}, [1.0]),
        **UP_DOWN,
    ),
    "f_dpo": Case(
        {"beta": 0.7, "divergence": "alpha", "alpha": 0.4},
        eq.f_dpo,
        eq.f_dpo_slope,
        worked=(PAIR, {"beta": 1 / (math.e - 1 / math.e), "divergence": "forward_kl"}, [-LS1]),
        start=(ZERO, {"beta": 2.0, "divergence": "js"}, [LOG2]),
        **UP_DOWN,
    ),
    "exo": Case(
        {"beta": 0.7, "label_smoothing": 0.1},
        eq.exo,
        of_margin(eq.exo_slope),
        worked=(PAIR, {"beta": 0.5, "label_smoothing": 0.1}, [0.114082108]),
        start=(ZERO, {"beta": 2.0, "label_smoothing": 0.1}, [-LOG2 - 0.5 * math.log(0.09)]),
        not_monotone="its minimum is at sigma(beta h) = 1 - label_smoothing",
    ),
    "discopop": Case(
        {"beta": 0.7, "tau": 0.8},
        eq.discopop,
        of_margin(eq.discopop_slope),
        worked=(PAIR, {"beta": 0.5, "tau": 1.0}, [(1 - S1) * -LS1 + (1 - S1)]),
        start=(ZERO, {"beta": 2.0}, [LOG2 / 2 + 0.5]),
        not_monotone="the blend rises where it switches from log to exp",
    ),
    "dpo_positive": Case(
        {"beta": 0.7, "penalty": 1.5},
        lambda row, beta, penalty: -ls(beta * (h(row) - penalty * max(0.0, -row["chosen_logratio"]))),
        eq.dpo_positive_slope,
        worked=(
            {"chosen_logratio": [-1.0, 1.0], "rejected_logratio": [-3.0, -1.0]},
            {"beta": 0.5, "penalty": 2.0},
            [LOG2, -LS1],
        ),
        start=(ZERO, {"beta": 2.0, "penalty": 50.0}, [LOG2]),
        **UP_DOWN,
    ),
    "nca": Case(
        {"beta": 0.7},
        lambda row, beta: (
            -ls(beta * row["chosen_logratio"])
            - 0.5 * ls(-beta * row["chosen_logratio"])
            - 0.5 * ls(-beta * row["rejected_logratio"])
        ),
        eq.nca_slope,
        worked=(PAIR, {"beta": 1.0}, [-LS1 - 0.5 * LSM1 - 0.5 * LS1]),
        start=(ZERO, {"beta": 2.0}, [2 * LOG2]),
        rises=("rejected_logratio",),
    ),
    "bco_pair": Case(
        {"beta": 0.7, "shift": 0.3},
        lambda row, beta, shift: (
            -ls(beta * row["chosen_logratio"] - shift) - ls(-(beta * row["rejected_logratio"] - shift))
        ),
        eq.bco_pair_slope,
        worked=({"chosen_logratio": [1.5], "rejected_logratio": [-0.5]}, {"beta": 1.0, "shift": 0.5}, [-2 * LS1]),
        start=(ZERO, {"beta": 2.0}, [2 * LOG2]),
        **UP_DOWN,
    ),
    "sppo": Case(
        {"beta": 0.7},
        lambda row, beta: (
            (row["chosen_logratio"] - 1 / (2 * beta)) ** 2 + (row["rejected_logratio"] + 1 / (2 * beta)) ** 2
        ),
        lambda row, beta: {
            "chosen_logratio": 2 * (row["chosen_logratio"] - 1 / (2 * beta)),
            "rejected_logratio": 2 * (row["rejected_logratio"] + 1 / (2 * beta)),
        },
        worked=({"chosen_logratio": [2.0], "rejected_logratio": [-3.0]}, {"beta": 0.5}, [5.0]),
        start=(ZERO, {"beta": 0.1}, [50.0]),
        not_monotone="its minimum is at +-1 / (2 beta)",
    ),
    "apo_zero": Case(
        {"beta": 0.7},
        lambda row, beta: 1 - sigma(beta * row["chosen_logratio"]) + sigma(beta * row["rejected_logratio"]),
        lambda row, beta: {
            "chosen_logratio": -beta * sigma(beta * row["chosen_logratio"]) * sigma(-beta * row["chosen_logratio"]),
            "rejected_logratio": beta
            * sigma(beta * row["rejected_logratio"])
            * sigma(-beta * row["rejected_logratio"]),
        },
        worked=(PAIR, {"beta": 1.0}, [2 * (1 - S1)]),
        start=(ZERO, {"beta": 2.0}, [1.0]),
        **UP_DOWN,
    ),
    "apo_down": Case(
        {"beta": 0.7},
        lambda row, beta: sigma(beta * row["chosen_logratio"]) + 1 - sigma(beta * h(row)),
        eq.apo_down_slope,
        worked=({"chosen_logratio": [1.0], "rejected_logratio": [1.0]}, {"beta": 1.0}, [S1 + 0.5]),
        start=(ZERO, {"beta": 2.0}, [1.0]),
        rises=("rejected_logratio",),
    ),
    "aot": Case(
        {"beta": 0.7},
        eq.aot,
        eq.aot_slope,
        worked=(
            {
                "chosen_logp": [2.0, 0.0],
                "rejected_logp": [0.0, 0.0],
                "ref_chosen_logp": [0.0, 1.0],
                "ref_rejected_logp": [0.0, 1.0],
            },
            {"beta": 0.5},
            [LOG2, -LS1],
        ),
        start=(
            {name: [-1.0] for name in ("chosen_logp", "rejected_logp", "ref_chosen_logp", "ref_rejected_logp")},
            {"beta": 2.0},
            [LOG2],
        ),
        falls=("chosen_logp", "ref_rejected_logp"),
        rises=("rejected_logp", "ref_chosen_logp"),
        whole_batch=True,
    ),
    "aot_unpaired": Case(
        {"beta": 0.7},
        eq.aot_unpaired,
        eq.aot_unpaired_slope,
        worked=({"chosen_logratio": [2.0, 0.0], "rejected_logratio": [-1.0, 1.0]}, {"beta": 1.0}, [-LS1, -LS1]),
        start=(ZERO, {"beta": 2.0}, [LOG2]),
        whole_batch=True,
        **UP_DOWN,
    ),
    "anchor": Case(
        {"beta": 0.7, "delta": 0.3},
        lambda row, beta, delta: -ls(beta * row["chosen_logratio"] - delta),
        lambda row, beta, delta: {"chosen_logratio": -beta * sigma(delta - beta * row["chosen_logratio"])},
        worked=({"chosen_logratio": [1.5]}, {"beta": 1.0, "delta": 0.5}, [-LS1]),
        start=({"chosen_logratio": [0.0]}, {"beta": 2.0}, [LOG2]),
        falls=("chosen_logratio",),
    ),
    "margin_dpo": Case(
        {"beta": 0.7},
        lambda row, beta: -ls(beta * h(row) - row["margin"]),
        lambda row, beta: {
            "chosen_logratio": -beta * sigma(row["margin"] - beta * h(row)),
            "rejected_logratio": beta * sigma(row["margin"] - beta * h(row)),
            "margin": sigma(row["margin"] - beta * h(row)),
        },
        worked=(PAIR | {"margin": [1.0]}, {"beta": 1.0}, [-LS1]),
        start=(ZERO | {"margin": [1.0]}, {"beta": 1.0}, [-LSM1]),
        falls=("chosen_logratio",),
        rises=("rejected_logratio", "margin"),
    ),
    "modpo": Case(
        {"beta": 0.7, "weight": 0.6},
        lambda row, beta, weight: -ls((beta * h(row) - row["margin"]) / weight),
        lambda row, beta, weight: {
            name: scale * sigma((row["margin"] - beta * h(row)) / weight) / weight
            for name, scale in (("chosen_logratio", -beta), ("rejected_logratio", beta), ("margin", 1.0))
        },
        worked=(PAIR | {"margin": [1.5]}, {"beta": 1.0, "weight": 0.5}, [-LS1]),
        start=(ZERO | {"margin": [0.5]}, {"beta": 1.0, "weight": 0.5}, [-LSM1]),
        falls=("chosen_logratio",),
        rises=("rejected_logratio", "margin"),
    ),
    "irepo": Case(
        {"beta": 0.7},
        lambda row, beta: (beta * h(row) - eq.logit(row["preference"])) ** 2,
        lambda row, beta: (
            of_margin(lambda row, beta: 2 * beta * (beta * h(row) - eq.logit(row["preference"])))(row, beta=beta)
            | {
                "preference": -2
                * (beta * h(row) - eq.logit(row["preference"]))
                / (row["preference"] * (1 - row["preference"]))
            }
        ),
        worked=(PAIR | {"preference": [0.5]}, {"beta": 1.0}, [4.0]),
        start=(ZERO | {"preference": [0.75]}, {"beta": 1.0}, [math.log(3) ** 2]),
        not_monotone="its minimum is at beta h = logit(preference)",
    ),
    "sft": Case(
        {},
        lambda row: -row["chosen_mean_logp"],
        lambda row: {"chosen_mean_logp": -1.0},
        worked=({"chosen_mean_logp": [-0.7]}, {}, [0.7]),
        start=({"chosen_mean_logp": [0.0]}, {}, [0.0]),
        falls=("chosen_mean_logp",),
    ),
    "simpo": Case(
        {"beta": 0.7, "gamma": 0.4},
        lambda row, beta, gamma: -ls(beta * (row["chosen_mean_logp"] - row["rejected_mean_logp"]) - gamma),
        eq.simpo_slope,
        worked=({"chosen_mean_logp": [-0.5], "rejected_mean_logp": [-1.5]}, {"beta": 2.0, "gamma": 1.0}, [-LS1]),
        start=(MEANS, {"beta": 2.0, "gamma": 1.0}, [-LSM1]),
        falls=("chosen_mean_logp",),
        rises=("rejected_mean_logp",),
    ),
    "cpo": Case(
        {"beta": 0.7, "alpha": 0.6},
        lambda row, beta, alpha: (
            -ls(beta * (row["chosen_logp"] - row["rejected_logp"])) - alpha * row["chosen_mean_logp"]
        ),
        eq.cpo_slope,
        worked=(
            {"chosen_logp": [-2.0], "rejected_logp": [-4.0], "chosen_mean_logp": [-0.3]},
            {"beta": 0.5, "alpha": 2.0},
            [-LS1 + 0.6],
        ),
        start=({"chosen_logp": [-2.0], "rejected_logp": [-2.0], "chosen_mean_logp": [-0.3]}, {"beta": 1}, [LOG2 + 0.3]),
        falls=("chosen_logp", "chosen_mean_logp"),
        rises=("rejected_logp",),
    ),
    "orpo": Case(
        {"weight": 0.6},
        lambda row, weight: (
            -row["chosen_mean_logp"]
            - weight * ls(eq.log_odds(row["chosen_mean_logp"]) - eq.log_odds(row["rejected_mean_logp"]))
        ),
        eq.orpo_slope,
        # odds of 3/4 and 1/2 are 3 and 1, so sigma of the log ratio is 3/4.
        worked=(
            {"chosen_mean_logp": [math.log(0.75)], "rejected_mean_logp": [-LOG2]},
            {"weight": 0.5},
            [1.5 * math.log(4 / 3)],
        ),
        start=(MEANS, {"weight": 0.5}, [1.5 * LOG2]),
        falls=("chosen_mean_logp",),
        rises=("rejected_mean_logp",),
    ),
    "asft": Case(
        {"weight": 0.6},
        eq.asft,
        eq.asft_slope,
        worked=(
            {"chosen_mean_logp": [math.log(0.75)], "rejected_mean_logp": [math.log(0.2)]},
            {"weight": 1.0},
            [2 * math.log(4 / 3) + math.log(1.25)],
        ),
        start=(MEANS, {"weight": 1.0}, [3 * LOG2]),
        falls=("chosen_mean_logp",),
        rises=("rejected_mean_logp",),
    ),
    "mapo": Case(
        {"beta": 0.2, "snr": 0.4, "num_timesteps": 10},
        eq.mapo,
        eq.mapo_slope,
        # f(log 2) = log 2 and f(log 3) = log(3) / 2, at snr * L = log 2 and log 3.
        worked=(
            {"chosen_logp": [-LOG2], "rejected_logp": [-math.log(3)]},
            {"num_timesteps": 1},
            [2 * LOG2 + 0.1 * math.log(1 + math.exp(0.5 * math.log(3) - LOG2))],
        ),
        start=({"chosen_logp": [0.0], "rejected_logp": [0.0]}, {}, [0.1 * LOG2]),
        falls=("chosen_logp",),
        rises=("rejected_logp",),
    ),
    "plackett_luce": Case(
        {"beta": 0.7},
        eq.plackett_luce,
        eq.plackett_luce_slope,
        worked=(three(LOG2, 0.0, 0.0), {}, [2 * LOG2]),
        start=(three(0, 0, 0), {"beta": 2.0}, [math.log(6)]),
        not_monotone=LIST_SLOPE,
    ),
    "listnet": Case(
        {"beta": 0.7, "tau": 0.8},
        eq.listnet,
        eq.listnet_slope,
        worked=(
            {"candidate_logratio": [[math.log(3), 0.0]], "labels": [[2 * math.log(3), 0.0]]},
            {"tau": 2.0},
            [-0.75 * math.log(0.75) - 0.25 * math.log(0.25)],
        ),
        start=(three(0, 0, 0), {"beta": 2.0}, [math.log(3)]),
        not_monotone=LIST_SLOPE,
    ),
    "lambda_rank": Case(
        {"beta": 0.7},
        eq.lambda_rank,
        eq.lambda_rank_slope,
        # Gains 1 and 0, ranks 2 and 1: |1 / log 3 - 1 / log 2| = 0.532455813.
        worked=(
            {"candidate_logratio": [[-1.0, 0.0]], "labels": [[1.0, 0.0]]},
            {},
            [0.532455813 * -LSM1],
        ),
        # Gains 3, 1, 0; at zero the better label ranks first: 1/D = 1.442695041, 0.910239227, 0.721347520.
        start=(three(0, 0, 0), {}, [LOG2 * (2 * 0.532455814 + 3 * 0.721347521 + 0.188891707)]),
        not_monotone=LIST_SLOPE,
    ),
    "ranklist": Case(
        {"beta": 0.7, "skip": 2},
        eq.ranklist,
        eq.ranklist_slope,
        worked=(three(LOG2, 0.0, LOG2), {"skip": 1}, [math.log(1 + 0.5 + 2)]),
        start=(three(0, 0, 0), {"beta": 2.0}, [math.log(4)]),
        not_monotone=LIST_SLOPE,
    ),
    "kto": Case(
        KTO,
        eq.kto,
        eq.kto_slope,
        worked=(SIDES, {"beta": 1.0, "kl": 0.5, "desirable_weight": 2.0}, [2 * (1 - S1), S1]),
        start=(SIDES_ZERO, {"beta": 2.0}, [0.5, 0.5]),
        not_monotone=SIDE_SLOPE,
    ),
    "diffusion_kto": Case(
        KTO | {"utility": "loss_averse"},
        eq.diffusion_kto,
        eq.diffusion_kto_slope,
        worked=(SIDES, {"beta": 1.0, "kl": 0.5, "utility": "risk_seeking"}, [1 + LSM1, 1 + LS1]),
        start=(SIDES_ZERO, {"beta": 2.0, "utility": "loss_averse"}, [1 + LOG2, 1 + LOG2]),
        not_monotone=SIDE_SLOPE,
    ),
    "bco": Case(
        {"beta": 0.7, "shift": 0.3, "weight": 1.4},
        eq.bco,
        eq.bco_slope,
        worked=(SIDES, {"beta": 1.0, "shift": 0.5, "weight": 2.0}, [-LS1, -2 * LSM1]),
        start=(SIDES_ZERO, {"beta": 2.0}, [LOG2, LOG2]),
        not_monotone=SIDE_SLOPE,
    ),
}
