"""Everything that is measured of a reward model on judged pictures, with the rules beside the numbers."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from mmalign.evaluation.accuracy import RULES, Accuracy, pairwise_accuracy
from mmalign.evaluation.calibration import Calibration, calibration
from mmalign.evaluation.judged import Judged
from mmalign.evaluation.probes import Probe, dimension_probes
from mmalign.evaluation.rankings import RankingMetrics, ranking_metrics

INTERVAL = "95 % percentile bootstrap over prompts"


@dataclass(frozen=True)
class RewardEvaluation:
    """``accuracies``: one per rule, mmalign's own first. ``notes``: what was left out, and why."""

    reward: str
    version: str
    scale: str
    data: str
    n_prompts: int
    n_groups: int
    accuracies: list[Accuracy]
    ranking: RankingMetrics
    calibration: Calibration
    probes: list[Probe]
    notes: list[str]
    bootstrap: int
    seed: int

    def to_json(self) -> str:
        """JSON text with ``kind: reward``."""
        return json.dumps({"kind": "reward", **asdict(self), "interval": INTERVAL}, indent=2, ensure_ascii=False) + "\n"

    def summary(self) -> str:
        """One line: ``accuracy 0.672 [0.655, 0.689] of pickscore under rule mmalign ...``."""
        first = self.accuracies[0]
        return (
            f"accuracy {first} of {self.reward} under rule {first.rule} ({first.average}, human ties "
            f"{first.human_ties}, model ties {first.model_ties}) over {first.n_pairs} pairs in {first.n_groups} groups "
            f"of {first.n_prompts} prompts"
        )

    def table(self) -> Table:
        """A line per rule."""
        table = Table(title=f"{escape(self.reward)} {escape(self.version)}: pairwise accuracy", title_justify="left")
        for column in ("rule", "accuracy, 95 % interval", "mean", "human ties", "model ties", "pairs", "groups"):
            table.add_column(column, justify="right" if column in ("pairs", "groups") else "left")
        for row in self.accuracies:
            cells = (row.rule, str(row), row.average, row.human_ties, row.model_ties, str(row.n_pairs))
            table.add_row(*(escape(cell) for cell in cells), str(row.n_groups))
        return table


def evaluate_reward(
    groups: Sequence[Judged],
    *,
    reward: str,
    version: str = "",
    scale: str = "",
    data: str = "",
    rules: Sequence[str] = (),
    threshold: float | None = None,
    temperature: float = 1.0,
    notes: Sequence[str] = (),
    bootstrap: int = 2000,
    seed: int = 0,
) -> RewardEvaluation:
    """All measures of ``groups``. ``rules``: of ``RULES``, by default all that need nothing more than is given.

    ``threshold``: for the rule ``pickapic``. ``temperature`` divides the scores for that rule and for calibration.
    """
    draws = {"bootstrap": bootstrap, "seed": seed}
    wanted = list(rules) or [name for name, rule in RULES.items() if threshold is not None or not rule.needs_threshold]
    notes = list(notes)
    if not rules and threshold is None:
        notes.append("Rule pickapic is left out: its threshold is chosen on validation data, and none was given.")
    scaled = groups if temperature == 1 else [group.divided_by(temperature) for group in groups]
    accuracies = []
    for name in wanted:
        three_way = name in RULES and RULES[name].needs_threshold
        on = scaled if three_way else groups
        accuracies.append(pairwise_accuracy(on, name, threshold=threshold if three_way else None, **draws))
    return RewardEvaluation(
        reward=reward,
        version=version,
        scale=scale,
        data=data,
        n_prompts=len({group.prompt for group in groups}),
        n_groups=len(groups),
        accuracies=accuracies,
        ranking=ranking_metrics(groups, **draws),
        calibration=calibration(groups, temperature=temperature, seed=seed),
        probes=dimension_probes(groups, **draws),
        notes=notes,
        **draws,
    )
