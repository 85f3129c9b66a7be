"""Pydantic's findings about a configuration, told as mistakes a reader can act on."""

import json
import re
from collections.abc import Sequence
from inspect import isclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mmalign.training.config import Config
from mmalign.training.mistakes import Mistake, suggestion

_PROBLEMS = {
    "missing": "required, but not given",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys",
}


def validate(raw: Any) -> tuple[Config | None, list[Mistake]]:
    """The configuration in ``raw``, or None and every mistake the schema finds.

    Values are taken as YAML typed them: ``"8"`` is not a number and 1 is not true. Rules *between* settings are
    checked once each setting is right by itself.
    """
    try:
        # Through JSON, because that is pydantic's strict mode in which a list may still fill a tuple.
        return Config.model_validate_json(json.dumps(raw), strict=True), []
    except ValidationError as error:
        # A default that depends on other settings waits for them; that it waits is no mistake of its own.
        told = [found for found in error.errors() if found["type"] != "default_factory_not_called"]
        return None, [mistake for found in told for mistake in _mistakes(found)]


def _mistakes(found: Any) -> list[Mistake]:
    location, kind, given = found["loc"], found["type"], found["input"]
    path = ".".join(map(str, location))
    if kind == "value_error":
        # A validator of ours: one problem per line. It names the settings itself.
        return [Mistake(path, line) for line in str(found["ctx"]["error"]).splitlines()]
    if kind == "missing":
        return [Mistake(path, _PROBLEMS[kind])]
    if kind == "extra_forbidden":
        return [Mistake(path, _unknown_key(location), given)]
    problem = _PROBLEMS.get(kind) or found["msg"].replace("Input should be", "must be")
    if kind == "literal_error":
        problem += "." + suggestion(given, re.findall(r"'([^']*)'", found["ctx"]["expected"]))
    if kind == "too_long":
        problem = f"must be a list of {found['ctx']['max_length']} items"
    if kind == "int_type" and isinstance(given, float) and given.is_integer():
        problem += f": write {int(given)}"
    if kind.startswith("model"):
        problem = f"must be a section with the keys {', '.join(_keys(_section(location)))}"
    return [Mistake(path, problem, given)]


def _unknown_key(location: Sequence[str | int]) -> str:
    *parents, key = location
    valid = _keys(_section(parents))
    elsewhere = [path for path in _every_path(Config, "") if path.rsplit(".", 1)[-1] == key]
    hint = f" Did you mean {elsewhere[0]!r}?" if elsewhere else suggestion(key, valid)
    return f"unknown key.{hint} Valid keys: {', '.join(valid)}"


def _keys(section: type[BaseModel]) -> list[str]:
    """Names of the section's settings as a file spells them."""
    return [field.alias or name for name, field in section.model_fields.items()]


def _section(location: Sequence[str | int]) -> type[BaseModel]:
    """The schema class of the section at ``location``."""
    section: type[BaseModel] = Config
    for key in location:
        section = _subsection(section, str(key)) or section
    return section


def _subsection(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    annotation = section.model_fields[key].annotation
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isclass(kind) and issubclass(kind, BaseModel)]
    return kinds[0] if kinds else None


def _every_path(section: type[BaseModel], prefix: str) -> list[str]:
    paths = []
    for key in section.model_fields:
        paths.append(prefix + key)
        subsection = _subsection(section, key)
        if subsection:
            paths += _every_path(subsection, f"{prefix}{key}.")
    return paths
