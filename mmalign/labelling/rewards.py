"""A reward by what a user types: the name of an installed model, or a YAML file that combines some."""

from pathlib import Path
from typing import Any

from mmalign.evaluation.combined import CombinedReward
from mmalign.rewards import RewardModel, find_reward
from mmalign.training.strict_yaml import parse_yaml


def open_reward(name: str, **options: Any) -> RewardModel:
    """The installed reward ``name``, or the combination that a ``.yaml`` file describes (see ``evaluation.combined``).

    ``options`` (weights, device, dtype) are an installed model's; in a file each reward has its own.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        return find_reward(name, **options)
    if not path.is_file():
        raise ValueError(f"--reward {name}: there is no such file")
    if options:
        raise ValueError(f"{', '.join(options)} would be ignored: {name} gives each of its rewards its own options")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a mapping with rewards: [...]")
    try:
        return CombinedReward.from_dict(data, base=path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
