"""The family ``reward`` of ``mmalign train`` (entry-point group ``mmalign.families``)."""

import math
from pathlib import Path
from typing import Any

from mmalign.losses import Objective
from mmalign.losses.signatures import LossSignature, available_losses
from mmalign.training.config import Config
from mmalign.training.image_branches import kind_of_rows
from mmalign.training.image_data import ImageData, open_data, open_head
from mmalign.training.mistakes import Mistake
from mmalign.training.plan import Plan
from mmalign.training.processes import processes_started
from mmalign.training.strategy import strategy_in_effect
from mmalign.training.task import HELD_OUT, TRAIN
from mmalign.types import CANDIDATES, CHOSEN, REJECTED
from reward_models.clip_folder import ClipFolder, find_clip
from reward_models.heads import NEEDS, OF_USERS, OFFERS, OPTIONAL
from reward_models.training.scorer import asked, head_settings, make_trainable, skeleton
from reward_models.training.task import RewardTask

PAIRS = frozenset({"chosen_score", "rejected_score", "preference", "margin"})
# Losses over rankings of generators read a log-ratio; a reward model's is its score.
RANKINGS = frozenset({"candidate_logratio", "labels"})
WITHOUT_RANKINGS = ("gaussian", "multi", "gpm")


def trainable_losses(head: str = "cosine") -> list[str]:
    """Losses that train a reward model with this head: they ask for nothing but what rows and head offer."""
    return sorted(name for name, loss in available_losses().items() if _fits(LossSignature.of(loss), head))


def mistakes(config: Config, objective: Objective, *, check_files: bool) -> list[Mistake]:
    """Terms that need more than rows and head offer, rows of another kind, and a model that is not there or no CLIP."""
    assert config.reward is not None
    problem = objective_problem(objective, config.reward.head.kind)
    found = [Mistake("objective", problem)] if problem else _data_mistakes(config, objective)
    if config.reference.kind != "auto":
        told = "would be ignored: a reward model has no reference; leave it out"
        found.append(Mistake("reference.kind", told, config.reference.kind))
    if not check_files:
        return found
    try:
        clip = find_clip(config.model.name, reward="model.name")
        _ = clip.config
    except ValueError as error:
        return [*found, Mistake("model.name", str(error), config.model.name)]
    try:
        if not problem:
            _count(clip, config, objective)
    except ValueError as error:
        found.append(Mistake("model", str(error)))
    return found


def objective_problem(objective: Objective, head: str = "cosine") -> str | None:
    """Why the objective cannot train a reward model with this head; None where it can."""
    problems = []
    for index, term in enumerate(objective.terms):
        here = f"objective.{index} ({term.loss_name})"
        lacking = [name for name in term.signature.tensors if name not in PAIRS | OFFERS[head] | RANKINGS]
        if lacking:
            problems.append(f"{here} asks for {', '.join(lacking)}")
        elif not _fits(term.signature, head) and _ranked(term.signature):
            problems.append(f"{here} reads rankings, for which reward.head.kind: {head} gives no scores")
        elif not _fits(term.signature, head):
            without = ", ".join(sorted(OFFERS[head] - OPTIONAL - set(term.signature.tensors)))
            problems.append(f"{here} does not read {without}, of which reward.head.kind: {head} makes its scores")
        elif set(term.branches.values()) not in ({CHOSEN, REJECTED}, {CANDIDATES}):
            problems.append(f"{here} reads the branches {', '.join(term.branches.values())}")
    if not problems and len({_ranked(term.signature) for term in objective.terms}) > 1:
        problems.append("objective has terms over pairs and terms over rankings, and rows are one or the other")
    needed = NEEDS.get(head)
    if not problems and needed and needed not in asked(objective):
        known = available_losses()
        fitting = [name for name in trainable_losses(head) if needed in LossSignature.of(known[name]).tensors]
        problems.append(f"reward.head.kind: {head} would not be trained whole: a term has to be {' or '.join(fitting)}")
    if not problems:
        return None
    return (
        f"{'; '.join(problems)}. With reward.head.kind: {head}, choose from {', '.join(trainable_losses(head))} "
        f"(mmalign losses describes them)"
    )


def _fits(signature: LossSignature, head: str) -> bool:
    if _ranked(signature):
        return head not in WITHOUT_RANKINGS
    extras = set(signature.tensors) - PAIRS
    # Scores alone, or all that the head makes them of: features without the ideal point would train half of it.
    return not extras or OFFERS[head] - OPTIONAL <= extras <= OFFERS[head]


def _ranked(signature: LossSignature) -> bool:
    return set(signature.tensors) <= RANKINGS


def _head_told(kind: str) -> str:
    return f"{kind}, and a row of weights for each user" if kind in OF_USERS else kind


def _data_mistakes(config: Config, objective: Objective) -> list[Mistake]:
    """Rows of a kind that the objective does not read, where the source alone tells the kind."""
    kind, ranked = kind_of_rows(config.data), any(_ranked(term.signature) for term in objective.terms)
    if kind is None or kind == ("ranking" if ranked else "pair"):
        return []
    wanted = "rankings" if ranked else "pairs"
    more = "; or read the rankings as pairs, with data.as: pairs" if kind == "ranking" else ""
    told = f"data.source: {config.data.source} gives {kind} rows, and the objective is trained on {wanted}{more}"
    return [Mistake("data.source", told, config.data.source)]


def _count(clip: ClipFolder, config: Config, objective: Objective) -> tuple[int, int]:
    """Numbers of trained and of all parameters, of a model with two users."""
    assert config.reward is not None
    scorer = skeleton(clip, head_settings(config.reward.head, objective, users=2))
    return make_trainable(scorer, config.model.lora, config.reward, asked(objective))


def run(config: Config) -> "RewardRun":
    """The run of ``config``."""
    return RewardRun(config)


class RewardRun:
    """``config`` checked: strategy, objective, model, what is trained of it; without weights."""

    def __init__(self, config: Config) -> None:
        assert config.reward is not None
        strategy = strategy_in_effect(config.training.strategy, processes_started())
        if strategy in ("fsdp", "deepspeed"):
            raise ValueError(
                f"this was started for {strategy}, which was not tried with family: reward; start it with "
                "accelerate launch --config_file ddp.yaml (mmalign recipes copy accelerate/ddp)"
            )
        self.config, self.objective = config, Objective(config.objective)
        problem = objective_problem(self.objective, config.reward.head.kind)
        if problem is not None:
            raise ValueError(problem)
        self.found = find_clip(config.model.name, reward="model.name")
        self.trained, self.parameters = _count(self.found, config, self.objective)

    def head(self) -> ImageData:
        """Rows of which only the first is decoded."""
        return open_head(self.config, self.objective)

    def open(self) -> ImageData:
        """Rows whose pictures were decoded as ``data.verify`` says."""
        return open_data(self.config, self.objective, record=Path(self.config.output))

    def plan(self, data: ImageData, processes: int) -> Plan:
        """The table of ``--dry-run``."""
        config, training, rows = self.config, self.config.training, data.size(TRAIN)
        assert config.reward is not None
        batch = training.batch_size * training.accumulation * processes
        per_step = f"{training.batch_size} x {training.accumulation} accumulated x {processes} processes"
        vision: Any = self.found.config.vision_config
        return Plan(
            (
                ("model", f"{config.model.name} (clip), {'LoRA' if config.model.lora else 'weights'}"),
                ("trained parameters", f"{self.trained:,} of {self.parameters:,}"),
                ("head", _head_told(config.reward.head.kind)),
                ("pictures", f"{vision.image_size} px, {config.reward.fit}"),
                ("data", data.report),
                ("rows", f"{rows:,} to train on, {data.size(HELD_OUT):,} held out"),
                ("global batch", f"{batch} = {per_step}"),
                (
                    "steps",
                    f"{training.steps:,}, {training.steps * batch / rows:.2f} epochs of {math.ceil(rows / batch)}",
                ),
                *(
                    (f"objective.{index}", ", ".join(f"{key}: {value}" for key, value in term.items()))
                    for index, term in enumerate(config.objective)
                ),
                ("output", config.output),
            )
        )

    def task(self, data: ImageData) -> RewardTask:
        """The model, ready to be trained."""
        return RewardTask(self.config, data, self.found, self.objective)
