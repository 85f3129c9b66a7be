"""``key.path=value`` on the command line: change one value of a configuration before it is validated."""

from collections.abc import Sequence
from typing import Any

from mmalign.training.mistakes import Mistake
from mmalign.training.strict_yaml import parse_yaml


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[Mistake]:
    """Write every override into ``raw`` and return what could not be applied.

    A value is YAML: ``training.learning_rate=1e-5``, ``model.lora=null``, ``model.lora.targets=[to_q, to_k]``. Items of
    a list go by index: ``objective.0.beta=3``. A section that is absent or null is made; no list grows by index.
    """
    mistakes: list[Mistake] = []
    seen: dict[str, str] = {}
    for text in overrides:
        path, equals, value_text = text.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            mistakes.append(Mistake(text, "an override is written key.path=value, for example training.steps=500"))
        elif path in seen:
            mistakes.append(Mistake(path, f"given twice: {seen[path]!r} would be ignored", value_text))
        elif not value_text.strip():
            mistakes.append(Mistake(path, f"no value given; to switch a setting off, write {path}=null"))
        else:
            seen[path] = value_text
            mistakes += _apply(raw, path, value_text)
    return mistakes


def _apply(raw: dict[str, Any], path: str, value_text: str) -> list[Mistake]:
    try:
        value = parse_yaml(value_text)
    except ValueError as error:
        return [Mistake(path, f"not a YAML value: {error}", value_text)]
    *parents, last = path.split(".")
    here: Any = raw
    for depth, key in enumerate(parents):
        problem = _cannot_enter(here, key, ".".join(parents[:depth]))
        if problem:
            return [Mistake(path, problem, value)]
        if isinstance(here, list):
            here = here[int(key)]
        else:
            if here.get(key) is None:
                here[key] = {}
            here = here[key]
    problem = _cannot_enter(here, last, ".".join(parents))
    if problem:
        return [Mistake(path, problem, value)]
    here[int(last) if isinstance(here, list) else last] = value
    return []


def _cannot_enter(container: Any, key: str, name: str) -> str | None:
    """Why ``key`` cannot be looked up in ``container`` (called ``name``), or None where it can."""
    if isinstance(container, dict):
        return None
    if not isinstance(container, list):
        return f"{name} is {container!r}, not a section with keys"
    if key.isdecimal() and int(key) < len(container):
        return None
    indices = "it is empty" if not container else f"its items go by index, 0 to {len(container) - 1}"
    return f"{name} is a list; {indices}. To add items, give the whole list: '{name}=[...]'"
