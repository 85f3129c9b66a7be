"""From a YAML file or recipe name plus overrides to a validated :class:`Config`; every mistake is reported at once.

No weight is loaded and no picture is read here. Checking the objective imports the losses, and torch with them: a
second or two, worth it so that a misspelt loss is told together with a misspelt setting.
"""

import re
from collections.abc import Mapping, Sequence
from glob import glob  # Path.glob takes no absolute pattern
from pathlib import Path
from typing import Any

from mmalign.training.config import Config
from mmalign.training.mistakes import ConfigError, Mistake, suggestion
from mmalign.training.overrides import apply_overrides
from mmalign.training.recipe_files import recipe_header, recipe_names, recipe_text
from mmalign.training.schema_errors import validate
from mmalign.training.strict_yaml import dump_yaml, parse_yaml


def load_config(source: str | Path, overrides: Sequence[str] = (), *, check_files: bool = True) -> Config:
    """The configuration in ``source``, a YAML file or the name of a recipe, with ``key.path=value`` overrides applied.

    ``check_files=False`` skips what depends on this machine: whether ``data.path`` and ``model.name`` exist.
    Raises :class:`ConfigError`, which holds every mistake with its path, the value given and what is valid.
    """
    source = str(source)
    text = _read(source)
    raw = _parse(source, text)
    mistakes = apply_overrides(raw, overrides)
    config, found = validate(raw)
    # An override that was refused leaves a gap; the gap itself is no news.
    mistakes += [mistake for mistake in found if mistake.path not in {known.path for known in mistakes}]
    objective, found = _check_objective(raw.get("objective"))
    mistakes += found
    if check_files:
        mistakes += _check_path(raw.get("data"), recipe_header(text).get("Data"), vlm=raw.get("family") == "vlm")
    if raw.get("family") == "vlm":
        from mmalign.training.vlm_mistakes import vlm_mistakes

        mistakes += vlm_mistakes(raw, config, objective, check_files=check_files)
    elif raw.get("family") == "reward":
        mistakes += _check_source(raw.get("data"))
        if check_files:
            mistakes += _check_reward(raw.get("data"))
        if config is not None and objective is not None:
            mistakes += _check_plug_in("reward", config, objective, check_files)
    else:
        mistakes += _check_source(raw.get("data"))
        if check_files:
            mistakes += _check_model(raw.get("model"), config)
            mistakes += _check_adapter(raw.get("model"))
            mistakes += _check_reward(raw.get("data"))
            mistakes += _check_picture_rewards(raw.get("evaluation"))
        if config is not None and objective is not None:
            mistakes += _check_image_objective(config, objective)
    if config is not None and objective is not None:
        mistakes += _check_objective_fits(config, objective)
    if mistakes or config is None:
        raise ConfigError(source, mistakes)
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, defaults included; loading it gives the same configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def _read(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        raise ConfigError(source, [Mistake("", "this is a folder; give a YAML file or the name of a recipe")])
    if path.is_file():
        return path.read_text(encoding="utf-8")
    names = recipe_names()
    if source in names:
        return recipe_text(source)
    hint = suggestion(source.removesuffix(".yaml").removeprefix("recipes/"), names)
    problem = f"there is no such file, and no such recipe.{hint} Recipes: {', '.join(names)}"
    raise ConfigError(source, [Mistake("", problem)])


def _parse(source: str, text: str) -> dict[str, Any]:
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(source, [Mistake("", f"not valid YAML: {error}")]) from None
    if not isinstance(raw, dict):
        raise ConfigError(source, [Mistake("", f"must hold sections such as model: and training:, not {raw!r}")])
    return raw


def _check_objective(terms: Any) -> tuple[Any, list[Mistake]]:
    """The objective that ``terms`` describe, or None and the mistakes; wrong types are left to the schema."""
    if not isinstance(terms, list) or not terms or not all(isinstance(t, Mapping) and "loss" in t for t in terms):
        return None, []
    from mmalign.losses import Objective

    try:
        return Objective(terms), []
    except ValueError as error:
        # One line per mistake, "- objective.N: what is wrong"; anything else is kept as it is.
        found = re.findall(r"^ *- (objective\.\d+): (.+)$", str(error), re.MULTILINE) or [("objective", str(error))]
        return None, [Mistake(path, problem) for path, problem in found]


def _check_source(data: Any) -> list[Mistake]:
    source = data.get("source") if isinstance(data, Mapping) else None
    if not isinstance(source, str):
        return []
    from mmalign.data import SOURCES

    if source in SOURCES:
        return []
    from mmalign.vlm_data import VLM_SOURCES

    problem = f"must be one of {', '.join(sorted(SOURCES))}.{suggestion(source, SOURCES)}"
    if source in VLM_SOURCES:
        problem = f"has rows of vision-language models: set family: vlm, or choose from {', '.join(sorted(SOURCES))}"
    return [Mistake("data.source", problem, source)]


def _check_path(data: Any, where_to_get_it: str | None, *, vlm: bool = False) -> list[Mistake]:
    path = data.get("path") if isinstance(data, Mapping) else None
    if not isinstance(path, str) or Path(path).expanduser().exists() or glob(path, recursive=True):  # noqa: PTH207
        return []
    from mmalign.data.hub import HUB_SOURCES, is_hub_id

    if (vlm or data.get("source") in HUB_SOURCES) and is_hub_id(path):
        return []  # whether the hub has it turns out when it is opened, still before a weight loads
    here = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
    advice = f". This recipe's data: {where_to_get_it}" if where_to_get_it else ""
    return [Mistake("data.path", f"there is no such file or folder{here}{advice}", path)]


def _check_reward(data: Any) -> list[Mistake]:
    name = data.get("relabel") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        return []
    from mmalign.rewards import installed_rewards

    installed = installed_rewards()
    if name in installed:
        return []
    problem = (
        f"is no reward model that is installed here; installed: {', '.join(installed)}.{suggestion(name, installed)}"
    )
    return [Mistake("data.relabel", problem, name)]


def _check_picture_rewards(evaluation: Any) -> list[Mistake]:
    pictures = evaluation.get("pictures") if isinstance(evaluation, Mapping) else None
    names = ("proxy_reward", "held_out_reward")
    given = {name: pictures.get(name) for name in names} if isinstance(pictures, Mapping) else {}
    mistakes = []
    for name, value in given.items():
        if not isinstance(value, str):
            continue
        from mmalign.rewards import installed_rewards

        installed, is_file = installed_rewards(), value.endswith((".yaml", ".yml"))
        if is_file and not Path(value).is_file():
            mistakes.append(Mistake(f"evaluation.pictures.{name}", "there is no such file", value))
        elif not is_file and value not in installed:
            told = f"installed: {', '.join(installed)}.{suggestion(value, installed)}"
            problem = f"is no reward model that is installed here, and no .yaml; {told}"
            mistakes.append(Mistake(f"evaluation.pictures.{name}", problem, value))
    return mistakes


def _check_adapter(model: Any) -> list[Mistake]:
    if not isinstance(model, Mapping) or not isinstance(model.get("adapter"), str):
        return []
    from mmalign.models.names import find_lora_file

    try:
        find_lora_file(model["adapter"])
    except ValueError as error:
        return [Mistake("model.adapter", str(error), model["adapter"])]
    return []


def _check_model(model: Any, config: Config | None) -> list[Mistake]:
    if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
        return []
    from mmalign.models import peek
    from mmalign.models.choices import choice_problems

    try:
        if config is None:  # the rest of the section may be wrong
            peek(model["name"], revision=model.get("revision"), config=model.get("config"))
            return []
        problems = choice_problems(config.model, peek(config.model))
    except ValueError as error:
        return [Mistake("model.name", str(error), model["name"])]
    return [Mistake(f"model.{setting}", problem, model.get(setting)) for setting, problem in problems]


def _check_image_objective(config: Config, objective: Any) -> list[Mistake]:
    """Settings of image generators that contradict the objective."""
    mistakes = []
    from mmalign.training.image_branches import kind_of_rows, problem_with_rows, reward_problem

    if (problem := reward_problem(objective)) is not None:
        return [Mistake("objective", problem)]
    if config.training.safeguard is not None:
        from mmalign.training.image_model import safeguard_problem

        problem = safeguard_problem(config, objective)
        mistakes += [Mistake("training.safeguard", problem)] if problem else []
    kind = kind_of_rows(config.data)
    if kind is not None and (problem := problem_with_rows(objective, kind)) is not None:
        mistakes.append(Mistake("objective", problem))
    return mistakes


def _check_plug_in(family: str, config: Config, objective: Any, check_files: bool) -> list[Mistake]:
    """What the package that trains ``family`` finds."""
    from mmalign.training.plug_ins import plug_in

    try:
        return plug_in(family).mistakes(config, objective, check_files=check_files)
    except ValueError as error:
        return [Mistake("family", str(error), family)]


def _check_objective_fits(config: Config, objective: Any) -> list[Mistake]:
    """Settings that contradict the objective, or that it would ignore."""
    mistakes = []
    losses = ", ".join(str(term["loss"]) for term in config.objective)
    if config.data.ties == "soft" and "preference" not in objective.asks:
        problem = f"no term of the objective ({losses}) reads soft labels; use soft_dpo, or data.ties: drop"
        mistakes.append(Mistake("data.ties", problem, "soft"))
    if objective.needs_reference and config.reference.kind == "none":
        problem = f"the objective ({losses}) compares with a reference; use auto, frozen or lora_off"
        mistakes.append(Mistake("reference", problem, "none"))
    if not objective.needs_reference and config.reference.kind not in ("auto", "none"):
        problem = f"would be ignored: the objective ({losses}) needs no reference; use auto or none"
        mistakes.append(Mistake("reference", problem, config.reference.kind))
    return mistakes
