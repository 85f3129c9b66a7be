"""The suites of the playground evidence: which methods, on which data, with which seeds, compared with what."""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path("benchmarks/results")
SDXL, SD3 = "playground/tiny-sdxl", "playground/tiny-sd3"
THREE, FIVE = (0, 1, 2), (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Arm:
    """One way to train. ``data``: see ``benchmarks.evidence_data``; ``changes`` override the recipe."""

    recipe: str
    data: str = "own"
    seeds: tuple[int, ...] = THREE
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Arms of one model and what is compared. ``comparisons``: (against, arm); ``metric``: the score that decides.

    ``guided``: arms that are also measured with guidance 3, one picture per caption. ``headline``: the comparisons that
    the README shows, all of them where there is none.
    """

    title: str
    arms: dict[str, Arm]
    comparisons: tuple[tuple[str, str], ...]
    model: str = SDXL
    metric: str = "share"
    guided: tuple[str, ...] = ()
    headline: tuple[tuple[str, str], ...] = ()


SHORT = ("objective.0.beta=0.1", "objective.0.num_timesteps=1000")
# A style that is far from the base takes a longer and faster run than its recipe.
FAR = ("training.steps=100", "training.learning_rate=1e-4")
# Ten times the rate of the recipe and more steps: plain DPO widens its margin and ruins the pictures.
OVER = ("training.steps=100", "training.learning_rate=2e-4")

# Labels of mmalign label, in its own format.
LABELS = ("data.source=canonical",)

STABILISERS = ("dpo", "safeguard", "sft term", "anchor term", "dpo_positive", "beta auto", "curriculum")

SUITES: dict[str, Suite] = {
    "core": Suite(
        "Methods on the playground",
        {
            "dpo": Arm("playground/dpo", seeds=FIVE),
            "mapo": Arm("playground/mapo", seeds=FIVE),
            "sft": Arm("playground/sft"),
            "dpo, 30 % flipped": Arm("playground/dpo", "flipped"),
            "robust_dpo, 30 % flipped": Arm("playground/robust_dpo", "flipped"),
            "mapo, published scale": Arm("playground/mapo", changes=SHORT),
        },
        (
            ("base", "dpo"),
            ("base", "mapo"),
            ("base", "sft"),
            ("sft", "dpo"),
            ("sft", "mapo"),
            ("base", "dpo, 30 % flipped"),
            ("base", "robust_dpo, 30 % flipped"),
            ("dpo, 30 % flipped", "robust_dpo, 30 % flipped"),
            ("base", "mapo, published scale"),
            ("base, guidance 3", "dpo, guidance 3"),
            ("base, guidance 3", "mapo, guidance 3"),
        ),
        guided=("dpo", "mapo"),
        headline=(
            ("base", "dpo"),
            ("base", "mapo"),
            ("base", "sft"),
            ("dpo, 30 % flipped", "robust_dpo, 30 % flipped"),
            ("base, guidance 3", "dpo, guidance 3"),
        ),
    ),
    "mismatch": Suite(
        "Reference mismatch: the chosen pictures are monochrome, which the base never paints",
        {
            "dpo": Arm("playground/dpo", "mismatch", changes=FAR),
            "mapo": Arm("playground/mapo", "mismatch", changes=FAR),
            "mapo, published scale": Arm("playground/mapo", "mismatch", changes=(*FAR, *SHORT)),
            "sft": Arm("playground/sft", "mismatch", changes=FAR),
        },
        (
            ("base", "dpo"),
            ("base", "mapo"),
            ("base", "mapo, published scale"),
            ("base", "sft"),
            ("dpo", "mapo"),
            ("dpo", "mapo, published scale"),
            ("sft", "mapo"),
        ),
        metric="style",
    ),
    "soft": Suite(
        "Soft labels: p(chosen wins) = sigmoid(gap / 0.3); the hard arm sees one vote drawn from it",
        {
            "dpo, drawn votes": Arm("playground/dpo", "votes"),
            "dpo, rounded labels": Arm("playground/dpo", "soft"),
            "soft_dpo": Arm("playground/dpo", "soft", changes=("objective.0.loss=soft_dpo", "data.ties=soft")),
            "smoothed_dpo": Arm(
                "playground/dpo",
                "soft",
                changes=("objective.0.loss=smoothed_dpo", "objective.0.scale=2.0", "data.ties=soft"),
            ),
        },
        (
            ("base", "dpo, drawn votes"),
            ("base", "dpo, rounded labels"),
            ("base", "soft_dpo"),
            ("base", "smoothed_dpo"),
            ("dpo, drawn votes", "soft_dpo"),
            ("dpo, drawn votes", "smoothed_dpo"),
            ("dpo, rounded labels", "soft_dpo"),
        ),
    ),
    "rows": Suite(
        "Single pictures and rankings instead of pairs, from the same samples",
        {
            "kto": Arm("playground/kto"),
            "plackett_luce": Arm("playground/rank_dpo", "rankings", changes=("objective.0.loss=plackett_luce",)),
            "lambda_rank": Arm("playground/rank_dpo", "rankings"),
        },
        (("base", "kto"), ("base", "plackett_luce"), ("base", "lambda_rank"), ("plackett_luce", "lambda_rank")),
    ),
    "flow": Suite(
        "Flow matching: tiny-sd3",
        {
            "flow dpo": Arm("playground/flow_dpo"),
            "flow mapo": Arm("playground/flow_mapo"),
            "flow kto": Arm("playground/flow_kto"),
        },
        (("base", "flow dpo"), ("base", "flow mapo"), ("base", "flow kto")),
        model=SD3,
    ),
    "labels": Suite(
        "Who labels: gold, a reward trained on gold labels of other pictures, or the CLIP it was trained from",
        {
            "dpo, gold labels": Arm("playground/dpo", "gold_labelled", changes=LABELS),
            "dpo, labels of a trained reward": Arm("playground/dpo", "reward_labelled", changes=LABELS),
            "dpo, labels of its CLIP": Arm("playground/dpo", "clip_labelled", changes=LABELS),
        },
        (
            ("base", "dpo, gold labels"),
            ("base", "dpo, labels of a trained reward"),
            ("base", "dpo, labels of its CLIP"),
            ("dpo, gold labels", "dpo, labels of a trained reward"),
            ("dpo, labels of its CLIP", "dpo, labels of a trained reward"),
        ),
    ),
    "stabilisers": Suite(
        "Stabilisers where plain DPO over-optimises: 100 steps of playground/dpo at ten times its rate",
        {
            "dpo": Arm("playground/dpo", changes=OVER),
            "safeguard": Arm("playground/dpo", changes=(*OVER, "training.safeguard.mu=0.9")),
            "sft term": Arm(
                "playground/dpo",
                changes=(*OVER, "objective=[{loss: dpo, beta: 5000}, {loss: sft, coefficient: 500}]"),
            ),
            "anchor term": Arm(
                "playground/dpo",
                changes=(*OVER, "objective=[{loss: dpo, beta: 5000}, {loss: anchor, beta: 5000}]"),
            ),
            "dpo_positive": Arm(
                "playground/dpo", changes=(*OVER, "objective=[{loss: dpo_positive, beta: 5000, penalty: 5}]")
            ),
            "beta auto": Arm(
                "playground/dpo", changes=(*OVER, "objective=[{loss: dpo, beta: auto, beta_start: 5000}]")
            ),
            "curriculum": Arm(
                "playground/dpo",
                "soft",
                changes=(*OVER, "training.curriculum={by: preference, stages: 3, stage_steps: 33}"),
            ),
        },
        (
            *(("base", name) for name in STABILISERS),
            *(("dpo", name) for name in STABILISERS if name != "dpo"),
        ),
    ),
}


def results_file(suite: str, folder: Path = RESULTS) -> Path:
    """Where the scores of a suite are kept."""
    return folder / ("evidence.json" if suite == "core" else f"evidence_{suite}.json")
