"""How mistakes in a configuration are collected and shown: one report with everything that has to change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

ABSENT: Any = object()


@dataclass(frozen=True)
class Mistake:
    """One thing to change: where (``objective.0.beta``; empty for the whole file), what is wrong, what was given."""

    path: str
    problem: str
    given: Any = ABSENT

    def __str__(self) -> str:
        where = self.path or "the configuration as a whole"
        given = "" if self.given is ABSENT else f" = {_short(self.given)}"
        return f"  {where}{given}\n      {self.problem}"


class ConfigError(ValueError):
    """Every mistake of a configuration at once. ``origin`` names the file; ``mistakes`` holds them one by one."""

    def __init__(self, origin: str, mistakes: Sequence[Mistake]) -> None:
        self.origin = origin
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__("\n".join([f"{origin}: {count}, nothing was loaded", *map(str, self.mistakes)]))


def suggestion(given: Any, valid: Iterable[str]) -> str:
    """`` Did you mean 'steps'?`` where one valid name is close to what was given, else an empty string."""
    names = list(valid)
    by_lower_case = {name.lower(): name for name in names}
    close = get_close_matches(str(given).lower(), by_lower_case, n=1, cutoff=0.6)
    # A dotted name (objective terms, recipes) is usually mistyped in its last part only.
    endings = [name for name in names if name.rsplit("/", 1)[-1] == str(given)]
    best = endings[0] if endings else by_lower_case[close[0]] if close else None
    return f" Did you mean {best!r}?" if best else ""


def _short(value: Any, limit: int = 100) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
