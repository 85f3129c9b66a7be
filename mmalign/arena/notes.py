"""Sentences that a board has to carry: what the votes cannot tell, and what was left out."""

from collections.abc import Sequence

from mmalign.arena.board import Board
from mmalign.arena.comparisons import REASONS

FEW_VOTERS = 10


def notes_of(
    board: Board, strong: Sequence[tuple[str, ...]], dropped: Sequence[str], idle: Sequence[str], rankings: int
) -> tuple[str, ...]:
    """Every note that applies. ``strong``: strong components; ``dropped``: effects confounded with the models;
    ``idle``: players that no vote compares."""
    return (
        *_top(board),
        *_connectivity(board, strong),
        *([f"no vote that counts compares {', '.join(idle)}"] if idle else []),
        *_people(board),
        *_effects(board, dropped),
        *(_left_out(number, REASONS[reason]) for reason, number in board.left_out.items()),
        *_rankings(rankings),
    )


def _left_out(number: int, why: str) -> str:
    if number != 1:
        return f"{number} votes {why} and do not count here"
    verb, _, rest = why.partition(" ")
    one = {"were": "was", "are": "is", "do": "does"}.get(verb, f"{verb}s")
    return f"1 vote {one} {rest} and does not count here"


def _rankings(number: int) -> list[str]:
    if not number:
        return []
    counted = (
        "1 ranking counts as all of its pairs" if number == 1 else f"{number} rankings count as all of their pairs"
    )
    return [f"{counted} (Plackett-Luce, full breaking)"]


def _top(board: Board) -> list[str]:
    two = board.top_two
    if two is None or two.matters:
        return []
    first, second = (standing.player for standing in board.standings[:2])
    sentence = (
        f"these votes cannot tell {first} from {second}: the difference is {two.value:+.2f} logits "
        f"[{two.low:+.2f}, {two.high:+.2f}]"
    )
    half = (two.high - two.low) / 2
    if two.value > 0.25 * half:
        more = (half / two.value) ** 2
        sentence += (
            f"; if it is as large as it looks, about {more:.1f} times as many votes of as many more voters would"
        )
    return [sentence]


def _connectivity(board: Board, strong: Sequence[tuple[str, ...]]) -> list[str]:
    notes = []
    if len(board.components) > 1:
        groups = " | ".join(", ".join(group) for group in board.components)
        notes.append(f"no vote connects these groups, so ranks hold within a group only: {groups}")
    if len(strong) > len(board.components):
        alone = [name for group in strong if len(group) == 1 for name in group]
        whom = f" ({', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''})" if alone else ""
        notes.append(
            f"some models only won or only lost against the others{whom}: how far apart they are rests on the ridge of "
            f"{board.ridge:g}, not on votes"
        )
    return notes


def _people(board: Board) -> list[str]:
    if board.voters == 1:
        return ["one voter: intervals are about more votes of that voter, not about other people"]
    if board.voters < FEW_VOTERS:
        return [f"only {board.voters} voters: intervals over people are rough below {FEW_VOTERS}"]
    return []


def _effects(board: Board, dropped: Sequence[str]) -> list[str]:
    notes = [f"{name} goes along with the models in these votes and cannot be told from them" for name in dropped]
    if board.position is not None and board.position.matters:
        side = "left" if board.position.value > 0 else "right"
        notes.append(f"voters favour the {side} side by {abs(board.position.value):.2f} logits; strengths allow for it")
    notes += [
        f"voters go by {effect.name} ({effect.value:+.2f} logits per standard deviation); strengths allow for it"
        for effect in board.style
        if effect.matters
    ]
    return notes
