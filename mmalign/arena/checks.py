"""Checks of single fields, each with an error that names the field, the value and what is allowed."""

import math
import re
from collections.abc import Mapping
from typing import Any

LONGEST_PROMPT = 10_000  # characters
LONGEST_NAME = 500
LONGEST_REASONS = 2_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 60


def shown(value: object) -> str:
    """``repr(value)``, cut where it is long: an error message never repeats a whole page of input."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def check_text(field: str, value: object, *, longest: int, empty: bool = False) -> None:
    """A text of at most ``longest`` characters that UTF-8 can hold; not empty unless ``empty``."""
    if not isinstance(value, str):
        raise ValueError(f"{field}={shown(value)} must be a text")
    if not empty and not value.strip():
        raise ValueError(f"{field} is empty; give a text")
    if len(value) > longest:
        raise ValueError(f"{field} has {len(value)} characters; at most {longest} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field}={shown(value)} holds a character that UTF-8 cannot write: {error.reason}") from error


def check_number(field: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number from ``low`` to ``high``; a bool is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{field}={shown(value)} must be a finite number")
    if not low <= value <= high:
        raise ValueError(f"{field}={value} must be from {low:g} to {high:g}")


def check_integer(field: str, value: object, *, low: int, high: int = 2**64 - 1) -> None:
    """A whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{field}={shown(value)} must be a whole number from {low} to {high}")


def check_sha256(field: str, value: object) -> None:
    """Sixty-four lower-case hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{field}={shown(value)} must be the SHA-256 of the file: 64 lower-case hexadecimal digits")


def check_flag(field: str, value: object) -> None:
    """True, False, or None for "not said"."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{field}={shown(value)} must be True, False or None (not said)")


def check_extras(field: str, value: object) -> None:
    """A mapping from texts to texts, finite numbers, bools or None."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{field}={shown(value)} must be a mapping")
    for name, inner in value.items():
        check_text(f"a key of {field}", name, longest=LONGEST_NAME)
        if isinstance(inner, str):
            check_text(f"{field}[{name!r}]", inner, longest=LONGEST_PROMPT, empty=True)
        elif inner is not None and not isinstance(inner, bool):
            check_number(f"{field}[{name!r}]", inner)


def only_known(field: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Every key of ``values`` is one of ``known``."""
    for name in values:
        if name not in known:
            raise ValueError(f"{field} has the unknown key {name!r}; known: {', '.join(known)}")
