"""The best held-out measurement so far, and when to stop waiting for a better one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmalign.training.config import EarlyStopConfig


@dataclass
class Best:
    """``value`` of the metric at ``step``, and how many measurements since then were no better."""

    metric: str
    patience: int
    value: float | None = None
    step: int | None = None
    without_improvement: int = 0

    @classmethod
    def of(cls, config: EarlyStopConfig) -> "Best":
        """Nothing measured yet."""
        return cls(config.metric, config.patience)

    def improved_by(self, step: int, measured: Mapping[str, float]) -> bool:
        """Take in the measurement of ``step``; True where it is the best so far. A loss is better when lower."""
        if self.metric not in measured:
            raise ValueError(
                f"evaluation.early_stop.metric: {self.metric} is not measured for this objective; "
                f"choose one of {', '.join(sorted(measured))}"
            )
        value = measured[self.metric]
        sign = -1 if self.metric == "loss" else 1
        if self.value is None or sign * value > sign * self.value:
            self.value, self.step, self.without_improvement = value, step, 0
            return True
        self.without_improvement += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.without_improvement >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was measured before; metric and patience are the configuration's."""
        self.value, self.step, self.without_improvement = state["value"], state["step"], state["without_improvement"]
