"""Pieces of HTML of the arena: the prompt, the reveal, the receipt, the keys."""

from collections.abc import Sequence

from app.answers_tab import paragraph
from app.arena import Revealed
from app.markup import text
from mmalign.arena import Ballot, Side

_ASKED = {
    "pair": "Which picture is better for",
    "ranking": "Order these from best to worst for",
    "answers": "Which answer is better, looking at the picture, to",
}
_KEYS = (
    ("pair", "← ↓ →", "left, tie, right"),
    ("pair", "Q A", "left acceptable or not"),
    ("pair", "O L", "right acceptable or not"),
    ("ranking", "1 – 4, U", "order four, undo"),
    ("pair", "S", "skip"),
    ("pair", "Enter", "submit, next"),
)


def keys(forms: Sequence[str]) -> str:
    """The shortcuts of ``forms``, on screens that have a keyboard."""
    each = "".join(f"<span><kbd>{text(key)}</kbd> {text(what)}</span>" for form, key, what in _KEYS if form in forms)
    return f'<div class="keys" aria-label="Keyboard shortcuts">{each}</div>'


def prompt(words: str, form: str) -> str:
    """The prompt, or the question, and what is asked of the voter; ``form``: pair, ranking or answers."""
    return f'<div class="prompt-card" id="battle-prompt"><small>{_ASKED[form]}</small>{text(words)}</div>'


def answer(words: str) -> str:
    """An answer without a name."""
    return f'<section class="answer">{paragraph(text(words))}</section>'


def revealed_name(side: Side, ballot: Ballot, place: int) -> str:
    """The model behind a picture, its settings, and what the voter said."""
    said = ""
    if ballot.better == ("left", "right")[place % 2] and ballot.ranking is None:
        said = '<span class="chip up"><b>✓ your choice</b></span>'
    if ballot.ranking is not None:
        said = f'<span class="chip"><b>{ballot.ranking.index(place) + 1}.</b></span>'
    known = [
        None if side.adapter_hash is None else f"weights {side.adapter_hash[:8]}",
        None if side.seed is None else f"seed {side.seed}",
        None if side.steps is None else f"{side.steps} steps",
        None if side.guidance is None else f"guidance {side.guidance:g}",
        None if side.lora_scale is None else f"LoRA scale {side.lora_scale:g}",
    ]
    settings = " · ".join(part for part in known if part)
    kind = "a" if place % 2 == 0 else "b"
    return (
        f'<div class="caption {kind}"><span class="name">{text(side.model)}</span>{said}'
        f'<span class="seed">{text(settings)}</span></div>'
    )


def places(order: Sequence[int]) -> str:
    """What has been ordered so far."""
    if not order:
        return '<p class="quiet">Pick the best picture first, then the next best.</p>'
    return f'<p class="quiet">Best to worst so far: <b>{" › ".join(str(place + 1) for place in order)}</b></p>'


def receipt(revealed: Revealed, votes: int) -> str:
    """That the vote is on disk."""
    ballot, sides = revealed.ballot, revealed.sides
    if ballot.ranking is not None:
        what = " › ".join(text(sides[place].model) for place in ballot.ranking)
    elif ballot.better == "tie":
        what = f"A tie between <b>{text(sides[0].model)}</b> and <b>{text(sides[1].model)}</b>"
    else:
        winner, loser = (sides[0], sides[1]) if ballot.better == "left" else (sides[1], sides[0])
        what = f"<b>{text(winner.model)}</b> over <b>{text(loser.model)}</b>"
    counted = "1 vote" if votes == 1 else f"{votes} votes"
    bad = " Both were called not acceptable." if ballot.both_bad else ""
    again = (
        " You saw this pair before, the other way round: it shows how steady votes are." if revealed.repeated else ""
    )
    return (
        f'<div class="receipt" role="status"><b>Vote kept.</b> {what}.{bad}{again} '
        f'<span class="quiet">Receipt {text(revealed.receipt.id[:10])}, {counted} in all.</span></div>'
    )
