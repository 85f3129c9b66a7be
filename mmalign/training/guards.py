"""Watches over a run: likelihood displacement, which is told, and ``training.guard``, which stops or warns.

Everything they see is a mean over all processes that was read from the device anyway, so every process comes to the
same verdict and no step waits. What they remember is plain numbers that go into every checkpoint.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from mmalign.training.config import GuardConfig

DISPLACEMENT = "likelihood_displacement"
SIDES = ("chosen_logratio", "rejected_logratio", "desirable_logratio", "undesirable_logratio")
STANDARD_ERRORS = 5.0
"""How far a mean has to be from 0. A run looks at it hundreds of times, and no look may be an alarm by chance."""
LINES_NEEDED = 30
SHARE_OF_MARGIN = 0.25
"""A fall that is certain but small beside the margin is how preference losses work; from here on it is told."""
NORMS_KEPT, NORMS_NEEDED = 50, 10
TIMES_MORE_OR_LESS = ("saturation", "contrast", "sharpness")


class GuardStop(RuntimeError):
    """``training.guard`` ended the run, after a checkpoint; the message says why and what can be done."""

    exit_code = 3


@dataclass(frozen=True)
class Event:
    """Something that a person should know. ``stop``: the run is not to go on."""

    kind: str
    message: str
    stop: bool = False

    def line(self, step: int) -> dict[str, Any]:
        """As a line of the log."""
        action = "stop" if self.stop else "warn"
        return {"step": step, "split": "event", "kind": self.kind, "action": action, "message": self.message}


@dataclass
class NoisyMean:
    """Exponential mean of a noisy series with its standard error, for a test of whether it left 0.

    The noise is taken from successive differences, 1/2 E (x_i - x_(i-1))^2, which a slow drift does not inflate. With
    n values, mean = sum_i w_i x_i and w_i proportional to decay^(n - i), so the standard error is the noise times
    sqrt(sum w_i^2) = sqrt((1 - d) (1 + d^n) / ((1 + d) (1 - d^n))).
    """

    decay: float = 0.95
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    last: float = 0.0

    def add(self, value: float) -> None:
        """Take in the next value."""
        if self.count:
            # Corrected for the start at zero by the weights so far: the first difference counts in full.
            weight = (1 - self.decay) / (1 - self.decay**self.count)
            self.variance += weight * (0.5 * (value - self.last) ** 2 - self.variance)
        self.count += 1
        self.mean += (1 - self.decay) / (1 - self.decay**self.count) * (value - self.mean)
        self.last = value

    @property
    def standard_error(self) -> float:
        """Of the mean; infinite before there are two values."""
        if self.count < 2:
            return math.inf
        d, power = self.decay, self.decay**self.count
        return math.sqrt(self.variance * (1 - d) * (1 + power) / ((1 + d) * (1 - power)))

    @property
    def left_zero(self) -> int:
        """1 or -1 where the mean is significantly above or below 0, else 0."""
        if self.count < LINES_NEEDED or abs(self.mean) <= STANDARD_ERRORS * self.standard_error:
            return 0
        return 1 if self.mean > 0 else -1


@dataclass
class Watches:
    """What was seen so far. ``start``: the first held-out measurement and the first pictures, by name."""

    guard: GuardConfig | None
    chosen: NoisyMean = field(default_factory=NoisyMean)
    margin: NoisyMean = field(default_factory=NoisyMean)
    norms: list[float] = field(default_factory=list)
    start: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def on_line(self, line: Mapping[str, Any]) -> list[Event]:
        """Look at a line of training numbers."""
        events = [*self._displacement(line), *self._log_ratios(line), *self._gradient(line)]
        return self._news(events)

    def on_held_out(self, measured: Mapping[str, float]) -> list[Event]:
        """Look at a held-out measurement; the first one, of the untrained model, is what later ones are held to."""
        return self._news(list(self._held_out(measured)))

    def on_drawn(self, measures: Mapping[str, float]) -> list[Event]:
        """Look at what was measured on the fixed prompts; the first time is what later ones are held to."""
        return self._news(list(self._drawn(measures)))

    def state_dict(self) -> dict[str, Any]:
        """As plain values."""
        seen = {"norms": self.norms, "start": self.start, "told": self.told}
        return {"chosen": asdict(self.chosen), "margin": asdict(self.margin), **seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what was seen before; the guard is the configuration's."""
        self.chosen, self.margin = NoisyMean(**state["chosen"]), NoisyMean(**state["margin"])
        self.norms, self.start, self.told = list(state["norms"]), dict(state["start"]), list(state["told"])

    def _news(self, events: Sequence[Event]) -> list[Event]:
        """A warning comes once; what stops the run comes every time, so that a resumed run stops again."""
        fresh = [event for event in events if event.stop or event.kind not in self.told]
        self.told += [event.kind for event in fresh if not event.stop]
        return fresh

    def _displacement(self, line: Mapping[str, Any]) -> Iterator[Event]:
        chosen, margin = _number(line, "chosen_logratio"), _number(line, "margin")
        if chosen is None or margin is None:
            return
        self.chosen.add(chosen)
        self.margin.add(margin)
        certain = self.chosen.left_zero == -1 and self.margin.left_zero == 1
        if certain and -self.chosen.mean >= SHARE_OF_MARGIN * self.margin.mean:
            yield Event(
                DISPLACEMENT,
                f"likelihood displacement: the chosen log-ratio has fallen to {self.chosen.mean:.3g} "
                f"(standard error {self.chosen.standard_error:.2g}) while the margin grew "
                f"to {self.margin.mean:+.3g}: the rejected side falls faster, but what was preferred becomes less "
                "likely, too. Some of this is usual. If samples get worse: training.safeguard.mu=0.9, a term "
                "{loss: sft, coefficient: 0.1} or {loss: anchor, beta: ...} beside this one, a lower "
                "training.learning_rate, or a larger beta, which holds the policy closer to the reference",
            )

    def _log_ratios(self, line: Mapping[str, Any]) -> Iterator[Event]:
        bound = self.guard.logratio if self.guard else None
        values = {side: value for side in SIDES if (value := _number(line, side)) is not None}
        worst = max(values, key=lambda side: abs(values[side]), default=None)
        if bound is not None and worst is not None and abs(values[worst]) > bound:
            yield self._bad("logratio", f"{worst} is {values[worst]:.3g}, further from 0 than {bound:g}")

    def _gradient(self, line: Mapping[str, Any]) -> Iterator[Event]:
        norm = _number(line, "grad_norm")
        if norm is None:
            return
        factor, usual = self.guard.grad_norm if self.guard else None, median(self.norms or [0.0])
        if factor is not None and len(self.norms) >= NORMS_NEEDED and norm > factor * usual:
            times = f"more than {factor:g} times {usual:.3g}, the median of the {len(self.norms)} lines before"
            yield self._bad("grad_norm", f"grad_norm is {norm:.3g}, {times}")
        self.norms = [*self.norms, norm][-NORMS_KEPT:]

    def _held_out(self, measured: Mapping[str, float]) -> Iterator[Event]:
        for name, sign in (("loss", 1), ("accuracy", -1)):
            value, key = _number(measured, name), f"held_out_{name}"
            if value is None:
                continue
            start, margin = self.start.setdefault(key, value), getattr(self.guard, key) if self.guard else None
            if margin is not None and sign * (value - start) > margin:
                worse = "above" if sign > 0 else "below"
                yield self._bad(key, f"held-out {name} is {value:.4g}, more than {margin:g} {worse} {start:.4g}, "
                                "where the untrained model was")  # fmt: skip

    def _drawn(self, measures: Mapping[str, float]) -> Iterator[Event]:
        for name in ("diversity", *TIMES_MORE_OR_LESS):
            value = _number(measures, name)
            if value is None:
                continue
            start, limit = self.start.setdefault(name, value), getattr(self.guard, name) if self.guard else None
            if limit is None:
                continue
            before = f"before the first step it was {start:.3g}"
            if name == "diversity" and value < limit * start:
                yield self._bad(name, f"diversity on the fixed prompts is {value:.3g}, below {limit:g} of it: {before}")
            if name in TIMES_MORE_OR_LESS and not start / limit <= value <= start * limit:
                yield self._bad(name, f"{name} on the fixed prompts is {value:.3g}; {before}, and {limit:g} times "
                                "more or less is the limit")  # fmt: skip
        yield from self._rewards(measures)

    def _rewards(self, measures: Mapping[str, float]) -> Iterator[Event]:
        held_out, proxy = _number(measures, "held_out_reward"), _number(measures, "proxy_reward")
        if held_out is None:
            return
        start, limit = self.start.setdefault("held_out_reward", held_out), self.guard and self.guard.held_out_reward
        if limit and start - held_out > limit:
            yield self._bad("held_out_reward", f"the held-out reward of the fixed prompts is {held_out:.4g}, more than "
                            f"{limit:g} below {start:.4g}, where the untrained model was")  # fmt: skip
        if proxy is None:
            return
        best = self.start.get("best_held_out_reward")
        if best is None or held_out > best:
            self.start |= {"best_held_out_reward": held_out, "proxy_reward_at_best": proxy}
            return
        then, limit = self.start["proxy_reward_at_best"], self.guard and self.guard.over_optimisation
        if limit and best - held_out > limit and proxy > then:
            yield self._bad("over_optimisation", f"on the fixed prompts the held-out reward is {held_out:.4g}, more "
                            f"than {limit:g} below its best, {best:.4g}, while the proxy rose from {then:.4g} to "
                            f"{proxy:.4g}: what still grows is what the proxy rewards and nobody else; use an earlier "
                            "checkpoint, a larger beta or fewer steps")  # fmt: skip

    def _bad(self, name: str, what: str) -> Event:
        assert self.guard is not None
        return Event(f"guard.{name}", f"training.guard.{name}: {what}", stop=self.guard.action == "stop")


def _number(values: Mapping[str, Any], name: str) -> float | None:
    """A finite number by this name, or None."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
