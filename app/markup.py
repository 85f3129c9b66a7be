"""Pieces of HTML. Everything that comes from a person, a file or a model's name goes through :func:`text`."""

import html
import re
from collections.abc import Sequence
from typing import Any

from app.compare import Comparison, data_uri, mean_difference
from app.sources import Picture


def text(value: Any) -> str:
    """``value`` as text inside of HTML, in quoted attributes too."""
    return html.escape(str(value), quote=True)


def hero(title: str, what: str) -> str:
    """The page's head."""
    return f'<div class="hero"><h1>mm<span>align</span></h1><p>{text(what)}: <b>{text(title)}</b></p></div>'


def notice(words: str) -> str:
    """What one should know first; `code` in backticks."""
    if not words:
        return ""
    parts = text(words).split("`")
    marked = "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
    return f'<p class="notice" role="note">{marked}</p>'


def empty(headline: str, words: str) -> str:
    """What stands where pictures or tables will be."""
    return f'<div class="empty"><div><strong>{text(headline)}</strong>{text(words)}</div></div>'


def problem(words: str) -> str:
    """An error that stays on the page."""
    return f'<div class="problem" role="alert">{text(words)}</div>'


def caption(comparison: Comparison, index: int, side: str) -> str:
    """Name, seed and scores under the picture of ``side`` ("a" or "b"); b also tells the change from a."""
    picture = (comparison.left if side == "a" else comparison.right)[index]
    chips = "".join(
        _chip(scored.reward, left if side == "a" else right, right - left if side == "b" else None, scored.scale)
        for scored, left, right in comparison.scores(index)
    )
    return (
        f'<div class="caption {side}"><span class="name">{text(picture.model)}</span>'
        f'<span class="seed">seed {picture.seed}</span>{chips}</div>'
    )


def _chip(reward: str, score: float, change: float | None, scale: str) -> str:
    title = f'title="{text(scale)}"'
    if change is None:
        return f'<span class="chip" {title}>{text(reward)} <b>{score:.3g}</b></span>'
    kind, arrow = ("up", "▲ ") if change > 0 else ("down", "▼ ") if change < 0 else ("same", "")
    change_words = "no change" if change == 0 else f"{change:+.3g}"
    return f'<span class="chip {kind}" {title}>{text(reward)} {score:.3g} <b>{arrow}{change_words}</b></span>'


def summary(comparison: Comparison, index: int) -> str:
    """Over all seeds: how often the right model scores higher; and what could not be scored, with the reason."""
    left, right = comparison.left[index], comparison.right[index]
    lines = []
    if left.image.size == right.image.size:
        gap = mean_difference(left.image, right.image)
        same = " The pictures are identical." if gap == 0 else ""
        lines.append(f"Mean difference of this pair: <b>{gap:.1f}</b> of 255 levels.{same}")
    count = len(comparison.left)
    for scored in comparison.scored:
        if scored.problem or count < 2:
            continue
        changes = [b - a for a, b in zip(scored.scores[:count], scored.scores[count:], strict=True)]
        better, equal = sum(change > 0 for change in changes), sum(change == 0 for change in changes)
        lines.append(
            f"{text(scored.reward)}: <b>{text(right.model)}</b> scores higher on <b>{better} of {count}</b> seeds"
            f"{f', {equal} equal' if equal else ''}, {_mean(changes)}."
        )
    body = f'<p class="summary">{" ".join(lines)}</p>' if lines else ""
    if count > 1:
        body += f'<p class="quiet">All {count} seeds: press one to see it above.</p>'
    cannot = [scored for scored in comparison.scored if scored.problem]
    return body + "".join(
        f'<p class="cannot">{text(scored.reward)} gives no score here: {text(scored.problem[:400])}</p>'
        for scored in cannot
    )


def _mean(changes: Sequence[float]) -> str:
    mean = sum(changes) / len(changes)
    return "no change on average" if mean == 0 else f"mean change <b>{mean:+.3g}</b>"


def flicker(left: Picture, right: Picture) -> str:
    """Both pictures in one place, in turn; with reduced motion the second comes while one points at it."""
    tiny = " tiny" if max(left.image.size) < 256 else ""
    return (
        f'<figure class="flicker{tiny}"><div class="under">'
        f'<img src="{data_uri(right)}" alt="{text(f"{right.model}: {right.prompt}")}">'
        f"<figcaption>{text(right.model)}</figcaption></div>"
        f'<div class="over"><img src="{data_uri(left)}" alt="{text(f"{left.model}: {left.prompt}")}">'
        f"<figcaption>{text(left.model)}</figcaption></div></figure>"
    )


def player(name: str) -> str:
    """A name on the board; digests behind ``#`` in small print."""
    parts = re.split(r"(#[0-9a-f]{8}(?![0-9a-f]))", name)
    return "".join(f"<small>{text(part)}</small>" if number % 2 else text(part) for number, part in enumerate(parts))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways on a phone; cells are HTML already."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll {kind}" tabindex="0">{inner}</div>'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Numbers with what they are."""
    each = [f'<div class="tile"><span>{text(name)}</span><strong>{text(told)}</strong></div>' for name, told in values]
    return f'<div class="tiles">{"".join(each)}</div>'
