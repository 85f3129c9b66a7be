"""HTML text that is escaped unless it was made here: prompts, names and paths in a report are not to be trusted."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already. Everything else that :func:`markup` is given gets escaped."""

    text: str


NOTHING = Markup("")


def markup(template: str, *values: object) -> Markup:
    """``template`` with each ``{}`` replaced by a value: :class:`Markup` as it is, anything else escaped.

    The template is code, never data; only the values may come from outside.
    """
    return Markup(template.format(*(_html(value) for value in values)))


def join(parts: Iterable[Markup]) -> Markup:
    """The parts one after the other."""
    return Markup("\n".join(part.text for part in parts if part.text))


def _html(value: object) -> str:
    return value.text if isinstance(value, Markup) else escape(str(value), quote=True)
