"""Reward models: one score per picture. They are plug-ins, found through the entry-point group ``mmalign.rewards``.

A package offers one with ``[project.entry-points."mmalign.rewards"]`` and a line ``name = "package.module:Model"``,
where ``Model()`` gives the model, loaded. ``Model`` may take ``weights``, ``device``, ``dtype`` and options of its
own by keyword; :func:`find_reward` hands on what it is given. This module imports no plug-in until it is asked for.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mmalign.rewards.oracle import OracleReward
from mmalign.rewards.protocol import DifferentiableReward, EmbeddingReward, RewardModel, score_many
from mmalign.rewards.statistic import STATISTICS, StatisticReward

__all__ = [
    "GROUP",
    "DifferentiableReward",
    "EmbeddingReward",
    "OracleReward",
    "RewardModel",
    "StatisticReward",
    "find_reward",
    "installed_rewards",
    "score_many",
]

GROUP = "mmalign.rewards"
SETTINGS = "reward.json"
BUILT_IN: Mapping[str, Callable[..., RewardModel]] = {
    "oracle": OracleReward,
    **{name: partial(StatisticReward, name) for name in STATISTICS},
}
"""What is computed from the pixels alone: no weights, no device."""


def installed_rewards() -> list[str]:
    """Names that :func:`find_reward` takes on this machine, sorted."""
    return sorted({*BUILT_IN, *_plug_ins()})


def find_reward(
    name: str, *, weights: str | Path | None = None, device: str | None = None, dtype: str | None = None, **options: Any
) -> RewardModel:
    """The reward model of that name, loaded: a built-in one or one from the entry-point group ``mmalign.rewards``; or
    the one in that folder, where ``name`` is the folder of a run of ``family: reward``, which then is its name.

    ``weights``: a file or folder with its weights, instead of the places where it looks by itself (for the models of
    ``reward_models``: the folder ``$MMALIGN_REWARDS``, then the hub's cache). ``device``: such as ``cuda:1``, by
    default CUDA where there is one. ``dtype``: ``float32`` (default), ``bfloat16`` or ``float16``. ``options`` are the
    model's own. Raises ValueError for an unknown name, a keyword the model does not take, and missing weights.
    """
    given = {key: value for key, value in (("weights", weights), ("device", device), ("dtype", dtype)) if value}
    plug_ins = _plug_ins()
    if name in BUILT_IN:
        return _build(name, BUILT_IN[name], given | options)
    run = None if name in plug_ins else _trained(name)
    if run is not None:
        if weights is not None:
            raise ValueError(f"reward {name!r} is a trained model's folder, so weights={weights} would be ignored")
        told = json.loads(run.read_text(encoding="utf-8"))
        if "reward" not in told:
            raise ValueError(
                f"{run} does not say which reward reads it; pass its folder as weights, such as of clip-reward"
            )
        name, options = str(told["reward"]), {"name": name, **options}
        given["weights"] = run.parent
    if name not in plug_ins:
        raise ValueError(
            f"no reward model {name!r}; installed: {', '.join(installed_rewards())}. "
            f"Packages add more through the entry-point group {GROUP!r}"
        )
    model = _build(name, plug_ins[name].load(), given | options)
    if not isinstance(model, RewardModel):
        raise ValueError(
            f"{plug_ins[name].value}, installed as reward {name!r}, is not a reward model: "
            f"it needs score(prompts, images), name, scale, prompt_limit, version, licence and source"
        )
    return model


def _build(name: str, factory: Callable[..., RewardModel], options: Mapping[str, Any]) -> RewardModel:
    parameters = inspect.signature(factory).parameters.values() if options else ()
    takes = {each.name for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)}
    unknown = [key for key in options if key not in takes]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in parameters):
        raise ValueError(
            f"reward {name!r} takes no {', '.join(unknown)}; it takes {', '.join(sorted(takes)) or 'no options'}"
        )
    return factory(**options)


def _trained(name: str) -> Path | None:
    """The file in a run's folder, or in what it exported, that says which plug-in reads it."""
    folder = Path(name).expanduser()
    return next((file for file in (folder / SETTINGS, folder / "aligned" / SETTINGS) if file.is_file()), None)


def _plug_ins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN or found.get(entry.name, entry) != entry:
            raise ValueError(f"reward {entry.name!r} of {entry.value} is taken already: uninstall or rename one")
        found[entry.name] = entry
    return found
