"""The best of a model's own answers against the worst, by any reward model that looks at a text and a picture."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mmalign.data.decoding import decode
from mmalign.negatives.answers import Answered
from mmalign.negatives.building import seed_of
from mmalign.negatives.kit import Kit, Make
from mmalign.rewards import RewardModel, find_reward, installed_rewards
from mmalign.types import VLMPair


@dataclass(frozen=True)
class BestOfN:
    """The best of the model's own answers against the worst, by a reward of text and picture.

    ``reward``: an installed one, such as clipscore, or vlm-judge, a vision-language model that rates; ``options``: its
    keywords (``--set options.weights=FOLDER --set options.rate="How well does this fit the picture? {}"``).
    ``candidates``: answers to each prompt. ``text``: what the reward reads, of
    {question} and {answer}. ``gap``: least difference of the rewards. ``with_response``: the row's own response, where
    it has one, is a candidate too.
    """

    reward: str = "clipscore"
    options: dict[str, Any] | None = None
    candidates: int = 8
    text: str = "{answer}"
    gap: float = 0.0
    with_response: bool = False

    speaks: ClassVar[bool] = True
    reads_response: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.candidates < 2 or self.gap < 0:
            raise ValueError(f"candidates={self.candidates} and gap={self.gap} must be at least 2 and 0")
        if "{answer}" not in self.text:
            raise ValueError("text must hold {answer} (and may hold {question})")
        if self.reward not in installed_rewards():
            raise ValueError(f"reward={self.reward!r} is not installed; choose one of {', '.join(installed_rewards())}")

    def open(self, kit: Kit) -> Make:
        """Loads the reward, then makes a pair of each row with one picture."""
        reward = find_reward(self.reward, **(self.options or {}))
        return lambda row, seed: self._pair(row, kit, reward, seed)

    def _pair(self, row: Answered, kit: Kit, reward: RewardModel, seed: int) -> VLMPair | str:
        if len(row.images) != 1:
            return f"the row has {len(row.images)} pictures, and a reward looks at one"
        picture = decode(row.images[0])
        said = kit.voice.say_each(
            row.prompt, [picture], seed_of(seed, "answers"), [""] * self.candidates, name=row.sample_id
        )  # fmt: skip
        own = [row.response] if self.with_response else []
        answers = list(dict.fromkeys(answer.strip() for answer in (*own, *said) if answer.strip()))
        if len(answers) < 2:
            return f"{len(answers)} of {self.candidates} answers differ"
        question = row.prompt[-1].text.strip()
        texts = [self.text.replace("{question}", question).replace("{answer}", answer) for answer in answers]
        scores = reward.score(texts, [picture] * len(texts)).float().cpu().tolist()
        best, worst = max(scores), min(scores)
        if best - worst <= self.gap:
            return f"the rewards of all answers lie within {self.gap:g}"
        chosen, rejected = answers[scores.index(best)], answers[scores.index(worst)]
        how: dict[str, Any] = {"negative": "best_of", "reward": reward.name, "reward_version": reward.version}
        how |= {"candidates": len(answers), "chosen_reward": best, "rejected_reward": worst}
        return replace(
            row.against(rejected, chosen=chosen),
            margin=best - worst,
            extras={**row.extras, **({"response": row.response} if row.response else {}), **how},
        )
