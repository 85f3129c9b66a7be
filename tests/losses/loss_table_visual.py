"""Rows of the table for the losses that read the same response with other pictures."""

import loss_cases as eq
from loss_cases import LOG2, PAIR, ZERO, Case

LS1 = -0.313261687518

VISUAL: dict[str, Case] = {
    "chip": Case(
        {"beta": 0.7, "token_weight": 0.3},
        eq.chip,
        eq.chip_slope,
        # ((1 + 1) + (1 + 0.5) - 0.25 (4 - 2)) / 3 = 1
        worked=(
            PAIR | {"chosen_other_logratio": [-0.5], "chosen_token_kl": [2.0], "rejected_token_kl": [4.0]},
            {"beta": 1 / 3, "token_weight": 0.25},
            [-LS1],
        ),
        start=(
            ZERO | {name: [0.0] for name in ("chosen_other_logratio", "chosen_token_kl", "rejected_token_kl")},
            {"beta": 0.1},
            [LOG2],
        ),
        falls=("chosen_logratio", "chosen_token_kl"),
        rises=("rejected_logratio", "chosen_other_logratio", "rejected_token_kl"),
    ),
    "v_dpo": Case(
        {"beta": 0.7, "guidance": 1.6},
        eq.v_dpo,
        eq.v_dpo_slope,
        # guided: 1.5 (-2) + 0.5 * 6 = 0 and 1.5 (-4) + 0.5 * 4 = -4, references -3 and -3: 0 + 3 - (-4 + 3) = 4
        worked=(
            {
                "chosen_logratio": [1.0],
                "rejected_logratio": [-1.0],
                "chosen_logp": [-2.0],
                "rejected_logp": [-4.0],
                "chosen_other_held": [-6.0],
                "rejected_other_held": [-4.0],
            },
            {"beta": 0.25, "guidance": 1.5},
            [-LS1],
        ),
        start=(
            ZERO
            | {
                "chosen_logp": [-2.0],
                "rejected_logp": [-3.0],
                "chosen_other_held": [-6.0],
                "rejected_other_held": [-7.0],
            },
            {"beta": 0.1, "guidance": 2.0},
            [LOG2],
        ),
        falls=("chosen_logratio", "chosen_logp", "rejected_other_held"),
        rises=("rejected_logratio", "rejected_logp", "chosen_other_held"),
    ),
}
