"""Checks of everything a visitor sends. The page, the API and direct HTTP requests all end up in these functions.

Each gives the value back in its own type or raises ``ValueError`` with the field, the value and what is allowed.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LONGEST_PROMPT = 1_000  # characters
MOST_STEPS = 100
MOST_SEEDS = 8
HIGHEST_SEED = 2**32 - 1
HIGHEST_GUIDANCE = 30.0
LORA_SCALES = (0.0, 2.0)
VIEWS = ("Side by side", "Slider", "Difference", "Flicker")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SHOWN = 80


def check_prompt(text: Any, field: str = "prompt", *, empty: bool = False) -> str:
    """A text of at most 1000 characters without control characters, stripped; not blank unless ``empty``."""
    if not isinstance(text, str):
        raise ValueError(f"{field} must be a text, got {shown(text)}")
    text = text.strip()
    if not text and not empty:
        raise ValueError(f"{field} is empty; say what the picture should show")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{field} has {len(text)} characters; at most {LONGEST_PROMPT} are allowed")
    if _CONTROL.search(text):
        raise ValueError(f"{field} holds control characters; send plain text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field} holds half of a character pair, which is no text; send plain text") from None
    return text


def check_whole(value: Any, field: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``; 3.0 is one, True, NaN and "3" are none."""
    number = _number(value, field, low, high)
    if number != int(number):
        raise ValueError(f"{field} must be a whole number from {low} to {high}, got {shown(value)}")
    return int(number)


def check_real(value: Any, field: str, low: float, high: float) -> float:
    """A finite number from ``low`` to ``high``."""
    return float(_number(value, field, low, high))


def check_choice(value: Any, field: str, choices: Iterable[Any]) -> Any:
    """One of ``choices``, of the same type."""
    listed = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in listed):
        raise ValueError(f"{field} {shown(value)} is unknown; choose one of {', '.join(map(str, listed[:20]))}")
    return value


def check_choices(values: Any, field: str, choices: Iterable[Any]) -> list[Any]:
    """A list of different entries of ``choices``; None is the empty list."""
    if values is None:
        return []
    listed = list(choices)
    if not isinstance(values, list | tuple) or len(values) > len(listed):
        raise ValueError(f"{field} must be a list of at most {len(listed)} entries, got {shown(values)}")
    checked = [check_choice(value, field, listed) for value in values]
    if len(set(checked)) != len(checked):
        raise ValueError(f"{field} names something twice: {shown(values)}")
    return checked


def check_token(value: Any, field: str) -> str:
    """An identifier that the server gave out: letters, digits, ``-``, ``_``, ``.``; at most 200 of them."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]{1,200}", value):
        raise ValueError(f"{field} {shown(value)} was not given out by this server")
    return value


def check_order(value: Any, count: int) -> tuple[int, ...]:
    """``[2, 0, 1]`` or ``"2,0,1"``: each of ``count`` places once, best first."""
    parts = value.split(",") if isinstance(value, str) else value
    message = f"the order must hold each of 0 to {count - 1} once, best first, got {shown(value)}"
    if not isinstance(parts, Sequence) or len(parts) != count:
        raise ValueError(message)
    places: list[Any] = [int(part) if isinstance(part, str) and part.strip().isdecimal() else part for part in parts]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(count)):
        raise ValueError(message)
    return tuple(places)


def together(*checks: Callable[[], Any]) -> list[Any]:
    """The results of all ``checks``; where some fail, one ``ValueError`` with every message."""
    results, problems = [], []
    for check in checks:
        try:
            results.append(check())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return results


def shown(value: Any) -> str:
    """``repr`` of what was sent, cut: an error never sends a page of input back."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**_SHOWN else "a number of very many digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _number(value: Any, field: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{field} must be a number from {low:.12g} to {high:.12g}, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number from {low:.12g} to {high:.12g}, got {value}")
    if not low <= value <= high:
        raise ValueError(f"{field} must be from {low:.12g} to {high:.12g}, got {shown(value)}")
    return value
