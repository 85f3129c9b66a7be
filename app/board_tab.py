"""The Leaderboard tab: what :func:`mmalign.arena.leaderboard` found, with everything one has to know to quote it."""

from typing import Any

import gradio as gr

from app import markup
from app.context import Context, explained
from app.markup import text
from mmalign.arena.board import Board, Standing
from mmalign.arena.leaderboard import leaderboard


def build(ctx: Context, tab: gr.Tab) -> None:
    """The tab; the board is computed when a visitor goes there, and on Refresh."""
    shown = gr.HTML(markup.empty("No board yet", "It is drawn from the votes of the Arena."), elem_id="board")
    refresh = gr.Button("Refresh", size="sm", elem_id="refresh-board")

    def on_show(request: gr.Request) -> str:
        with explained():
            ctx.count(ctx.reads, request)
        return page_of(ctx)

    tab.select(on_show, None, shown, api_visibility="private", show_progress="minimal")
    refresh.click(on_show, None, shown, api_visibility="private", show_progress="minimal")


def page_of(ctx: Context) -> str:
    """The board as HTML, or why there is none."""
    counts = ctx.arena.store.counts()
    try:
        return board_page(leaderboard(ctx.arena.store.votes()))
    except ValueError as error:
        if counts["votes"]:
            return markup.empty("No board from these votes", str(error))
        return markup.empty("No votes yet", "Vote in the Arena; each vote is on disk before it is confirmed.")


def board_page(board: Board) -> str:
    """Numbers, the honest sentences, standings, who beat whom, and the advantage of the left side."""
    numbers = [
        ("votes", f"{board.votes}"),
        ("voters", f"{board.voters}"),
        ("comparisons", f"{board.comparisons}"),
        ("a tie of two equals", "none seen" if board.tie_probability is None else f"{board.tie_probability:.0%}"),
    ]
    notes = "".join(f"<li>{text(note)}.</li>" for note in board.notes)
    honest = f'<div class="notice" role="note"><b>Before quoting a rank</b><ul>{notes}</ul></div>' if notes else ""
    return (
        markup.tiles(numbers)
        + honest
        + '<h3 class="part">Standings</h3>'
        + standings(board)
        + '<h3 class="part">Who was preferred to whom</h3>'
        + heat_map(board)
        + position(board)
    )


def standings(board: Board) -> str:
    """Ranks that respect the intervals, strengths with them, and the counts."""
    low = min(one.low for one in board.standings)
    high = max(one.high for one in board.standings)
    rows = [_standing(one, low, high) for one in board.standings]
    header = ["Rank", "Model", "Strength", f"{board.level:.0%} interval", "Elo scale", "Won", "Lost", "Tied"]
    how = (
        '<p class="quiet">A rank is 1 plus the number of models whose whole interval lies above; equal ranks cannot be '
        f"told apart by these votes. Intervals: {text(board.interval)}, over voters. Strengths are logits.</p>"
    )
    return markup.table(header, rows) + how


def _standing(one: Standing, low: float, high: float) -> list[str]:
    span = max(high - low, 1e-9)
    start, end, dot = ((value - low) / span * 100 for value in (one.low, one.high, one.strength))
    said = f"{one.low:+.2f} to {one.high:+.2f}"
    bar = (
        f'<span class="interval" role="img" aria-label="{said}"><i class="line"></i>'
        f'<i class="span" style="left:{start:.1f}%;width:{max(end - start, 0.5):.1f}%"></i>'
        f'<i class="dot" style="left:{dot:.1f}%"></i></span>'
    )
    numbers = [f"{one.elo:.0f}", str(one.wins), str(one.losses), str(one.ties)]
    return [
        f'<td><span class="rank">{one.rank}</span></td>',
        f'<td class="player">{text(one.player)}</td>',
        f'<td class="number">{one.strength:+.2f}</td>',
        f'<td>{bar}<small class="quiet">{said}</small></td>',
        *(f'<td class="number">{number}</td>' for number in numbers),
    ]


def heat_map(board: Board) -> str:
    """Row preferred to column: share of decided comparisons, and the counts."""
    order = [one.player for one in board.standings]
    places = {player: board.players.index(player) for player in order}
    rows = []
    for first in order:
        cells = [f'<td class="player">{text(first)}</td>']
        for second in order:
            won = board.wins[places[first]][places[second]]
            lost = board.wins[places[second]][places[first]]
            tied = board.ties[places[first]][places[second]]
            cells.append(_cell(won, lost, tied, first == second))
        rows.append(cells)
    return markup.table(["row over column", *(text(player) for player in order)], rows, "heat")


def _cell(won: int, lost: int, tied: int, same: bool) -> str:
    if same:
        return '<td class="cell" aria-label="the same model">·</td>'
    if won + lost + tied == 0:
        return '<td class="cell" aria-label="never met">–</td>'
    counts = f"{won} won, {lost} lost, {tied} tied"
    if won + lost == 0:
        return f'<td class="cell" title="{counts}">ties<small>{counts}</small></td>'
    share = won / (won + lost)
    colour = "11, 127, 107" if share >= 0.5 else "194, 84, 27"
    strength = 0.08 + 0.55 * abs(share - 0.5) * 2
    style = f"background: rgba({colour}, {strength:.2f})"
    return f'<td class="cell" style="{style}">{share:.0%}<small>{counts}</small></td>'


def position(board: Board) -> str:
    """The advantage of the left side, in words."""
    effect: Any = board.position
    if effect is None:
        words = "The advantage of the left side cannot be estimated from these votes."
    elif effect.matters:
        side = "left" if effect.value > 0 else "right"
        size = f"{abs(effect.value):.2f} logits [{effect.low:+.2f}, {effect.high:+.2f}]"
        words = f"Voters favour the {side} side by {size}; the board is corrected for it."
    else:
        words = (
            f"No sign that a side is favoured: {effect.value:+.2f} logits for the left one "
            f"[{effect.low:+.2f}, {effect.high:+.2f}]."
        )
    return f'<h3 class="part">Position</h3><p class="summary" id="position">{words}</p>'
