"""Reward scores for the pictures on the screen: whatever reward models are installed and can score."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from app.sources import Picture
from mmalign.rewards import RewardModel, find_reward, installed_rewards


@dataclass(frozen=True)
class Scored:
    """Scores of one reward for pictures [n], or ``problem``: why it cannot score these."""

    reward: str
    scale: str
    scores: tuple[float, ...] = ()
    problem: str = ""


class Scorers:
    """Reward models by name, each loaded when it is first asked for, and then kept."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        installed = installed_rewards()
        self.names = list(installed if names is None else names)
        unknown = [name for name in self.names if name not in installed]
        if unknown:
            raise ValueError(f"--reward {', '.join(unknown)}: not installed; installed: {', '.join(installed)}")
        self.named = names is not None
        self._lock = threading.Lock()
        self._models: dict[str, RewardModel | str] = {}

    def at_first(self, prompts: Sequence[str]) -> list[str]:
        """What is ticked when the page opens: the named ones, or the oracle where it reads every prompt.

        Nothing else, because a reward model of some gigabytes would be loaded for it.
        """
        if self.named:
            return self.names
        return ["oracle"] if "oracle" in self.names and all(_is_of_the_playground(prompt) for prompt in prompts) else []

    def score(self, name: str, pictures: Sequence[Picture]) -> Scored:
        """Scores by the reward ``name``; a reward that cannot is told as ``problem``, and never a number."""
        with self._lock:
            model = self._models.get(name)
            if model is None:
                model = self._models[name] = _loaded(name)
            if isinstance(model, str):
                return Scored(name, "", problem=model)
            try:
                scores = model.score([picture.prompt for picture in pictures], [picture.image for picture in pictures])
            except ValueError as error:
                return Scored(name, model.scale, problem=str(error))
        values = tuple(float(score) for score in scores)
        if not all(math.isfinite(value) for value in values):
            return Scored(name, model.scale, problem=f"{name} gave a score that is not finite: {values}")
        return Scored(name, model.scale, values)


def _loaded(name: str) -> RewardModel | str:
    """The reward model, or why it cannot be loaded here (weights that were not downloaded, a missing package)."""
    try:
        return find_reward(name)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        return f"{name} cannot be loaded: {error}"


def _is_of_the_playground(prompt: str) -> bool:
    from mmalign.playground.captions import parse

    try:
        parse(prompt)
    except ValueError:
        return False
    return True
