"""Mistakes in the configuration of a vision-language model that the schema cannot see; nothing is loaded."""

from collections.abc import Mapping
from typing import Any

from mmalign.training.config import Config
from mmalign.training.mistakes import Mistake, suggestion


def vlm_mistakes(raw: Mapping[str, Any], config: Config | None, objective: Any, *, check_files: bool) -> list[Mistake]:
    """Unknown sources, models that are not there or of no known family, branches that cannot be made."""
    mistakes = _source(raw.get("data"))
    if check_files:
        mistakes += _model(raw.get("model"), config)
    if config is not None and config.vlm is not None and objective is not None:
        from mmalign.training.vlm_branches import branch_problems
        from mmalign.training.vlm_kept import kept_problem

        mistakes += [Mistake("objective", problem) for problem in branch_problems(objective, config.vlm)]
        if (problem := kept_problem(config, objective)) is not None:
            mistakes.append(Mistake("reference", problem, "cached"))
    return mistakes


def _source(data: Any) -> list[Mistake]:
    source = data.get("source") if isinstance(data, Mapping) else None
    if not isinstance(source, str):
        return []
    from mmalign.vlm_data import VLM_SOURCES

    if source in VLM_SOURCES:
        return []
    from mmalign.data import SOURCES

    problem = f"must be one of {', '.join(sorted(VLM_SOURCES))} for family: vlm.{suggestion(source, VLM_SOURCES)}"
    if source in SOURCES:
        problem += f" {source} has rows of image generators (family: image)."
    return [Mistake("data.source", problem, source)]


def _model(model: Any, config: Config | None) -> list[Mistake]:
    if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
        return []
    from mmalign.models.vlm_names import peek_vlm, pixels_problem
    from mmalign.training.config import ModelConfig

    known = config.model if config else ModelConfig(name=model["name"], revision=model.get("revision"))
    try:
        info = peek_vlm(known)
    except ValueError as error:
        return [Mistake("model.name", str(error), model["name"])]
    vlm = config.vlm if config else None
    problem = pixels_problem(info, vlm.min_pixels, vlm.max_pixels) if vlm else ""
    return [Mistake("vlm", problem)] if problem else []
