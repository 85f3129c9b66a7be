"""The Leaderboard tab: what :mod:`app.board` found, with everything one has to know to quote it."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import markup, validation
from app.board import Findings, findings, votes_of
from app.context import Context, explained
from app.markup import text
from mmalign.arena import Agreement, Flip, HoldOut
from mmalign.arena.agreement import Rater
from mmalign.arena.battle import Kind
from mmalign.arena.board import Board, Effect, Standing

STYLES = {"As voted": False, "Allowing for style": True}
STYLE_IS = {
    "pictures": "Brightness, contrast, saturation and sharpness: a model that only turns them up should not win.",
    "answers": "The length of an answer: a model that only says more should not win.",
}
RATERS = 20


def build(ctx: Context, tab: gr.Tab) -> None:
    """The tab; the board is computed when a visitor goes there, when the choice changes, and on Refresh."""
    with gr.Row(elem_classes="bar"):
        style = gr.Radio(
            list(STYLES),
            value=next(iter(STYLES)),
            label="Strengths",
            info=STYLE_IS[ctx.arena.sides.kind],
            scale=4,
            elem_id="board-style",
        )
        refresh = gr.Button("Refresh", scale=0, min_width=110, elem_id="refresh-board")
    shown = gr.HTML(markup.empty("No board yet", "It is drawn from the votes of the Arena."), elem_id="board")

    def on_show(style: Any, request: gr.Request) -> str:
        with explained():
            ctx.count(ctx.reads, request)
            chosen = STYLES[validation.check_choice(style, "strengths", STYLES)]
        return page_of(ctx, style=chosen)

    events: dict[str, Any] = {"fn": on_show, "inputs": style, "outputs": shown}
    events |= {"api_visibility": "private", "show_progress": "minimal", "preprocess": False}
    tab.select(**events)
    style.input(**events)
    refresh.click(**events)


def page_of(ctx: Context, *, style: bool = False) -> str:
    """The board as HTML, or why there is none."""
    try:
        return board_page(findings(ctx, style=style), ctx.arena.sides.kind)
    except ValueError as error:
        if votes_of(ctx):
            return markup.empty("No board from these votes", str(error))
        return markup.empty("No votes yet", "Vote in the Arena; each vote is on disk before it is confirmed.")


def board_page(found: Findings, kind: Kind) -> str:
    """Numbers, the honest sentences, standings, who beat whom, what else voters went by, and the voters."""
    board = found.board
    numbers = [
        ("votes", f"{board.votes}"),
        ("voters", f"{board.voters}"),
        ("comparisons", f"{board.comparisons}"),
        ("a tie of two equals", "none seen" if board.tie_probability is None else f"{board.tie_probability:.0%}"),
    ]
    sentences = [*_training(found.hold_out, kind), *board.notes]
    notes = "".join(f"<li>{text(note)}.</li>" for note in sentences)
    honest = f'<div class="notice" role="note"><b>Before quoting a rank</b><ul>{notes}</ul></div>' if notes else ""
    return (
        markup.tiles(numbers)
        + honest
        + '<h3 class="part">Standings</h3>'
        + standings(board)
        + lead(found.flips)
        + '<h3 class="part">Who was preferred to whom</h3>'
        + heat_map(board)
        + position(board)
        + style_effects(board)
        + raters(found.voters)
    )


def _training(hold_out: HoldOut | None, kind: Kind) -> list[str]:
    if hold_out is None:
        return []
    return [f"votes were exported for training, so only those on held-out {hold_out.units(kind)} score from now on"]


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
        f'<td class="player">{markup.player(one.player)}</td>',
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
        cells = [f'<td class="player">{markup.player(first)}</td>']
        for second in order:
            won = board.wins[places[first]][places[second]]
            lost = board.wins[places[second]][places[first]]
            tied = board.ties[places[first]][places[second]]
            cells.append(_cell(won, lost, tied, first == second))
        rows.append(cells)
    return markup.table(["row over column", *(markup.player(player) for player in order)], rows, "heat")


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


def lead(flips: Sequence[Flip]) -> str:
    """How few votes, and how few voters, hold up the first place."""
    lines = []
    for flip in flips:
        if flip.dropped is None:
            words = f"no {flip.total // 2} of {flip.total} {flip.unit}s were found that {flip.top} needs to stay first"
        else:
            words = str(flip)
        lines.append(f"<li>{text(words)}.</li>")
    title = '<h3 class="part">How few hold up the lead</h3>'
    return f'{title}<ul class="quiet" id="lead">{"".join(lines)}</ul>' if lines else ""


def style_effects(board: Board) -> str:
    """What voters go by besides the models, where style was controlled for."""
    if not board.style:
        return ""
    rows = [
        [
            f'<td class="player">{text(effect.name)}</td>',
            f'<td class="number">{effect.value:+.2f}</td>',
            f'<td class="number">{effect.low:+.2f} to {effect.high:+.2f}</td>',
            f"<td>{_told(effect)}</td>",
        ]
        for effect in board.style
    ]
    header = ["Style", "Logits per standard deviation", f"{board.level:.0%} interval", ""]
    return '<h3 class="part" id="style">Style</h3>' + markup.table(header, rows)


def _told(effect: Effect) -> str:
    if not effect.matters:
        return "no sign that voters go by it"
    return f"voters prefer {'more' if effect.value > 0 else 'less'} of it"


def raters(voters: Agreement) -> str:
    """How far voters agree with each other and with themselves, all together and one by one."""
    alpha, kappa = ("not defined yet" if value is None else f"{value:.2f}" for value in (voters.alpha, voters.kappa))
    words = (
        f"Krippendorff's alpha between voters: <b>{alpha}</b>; Cohen's kappa of a voter with the same voter, on pairs "
        f"shown twice with the sides exchanged: <b>{kappa}</b> (1 is perfect, 0 what chance gives). "
        f"{text(voters.note)}."
    )
    header = ["Voter", "Votes", "Agrees with others", "Same again", "Chose left", "Median time"]
    table = markup.table(header, [_rater(rater) for rater in voters.raters[:RATERS]])
    more = len(voters.raters) - RATERS
    rest = f'<p class="quiet">The {RATERS} with most votes; {more} more.</p>' if more > 0 else ""
    return f'<h3 class="part">Voters</h3><p class="summary" id="raters">{words}</p>{table}{rest}'


def _rater(rater: Rater) -> list[str]:
    seconds = "–" if rater.median_seconds is None else f"{rater.median_seconds:.1f} s"
    cells = [
        str(rater.votes),
        _share(rater.agrees, rater.compared),
        _share(rater.consistent, rater.repeats),
        "–" if rater.left is None else f"{rater.left:.0%}",
        seconds,
    ]
    name = f'<td class="player">{text(rater.voter[:10])}</td>'
    return [name, *(f'<td class="number">{cell}</td>' for cell in cells)]


def _share(share: float | None, of: int) -> str:
    return "–" if share is None else f"{share:.0%} of {of}"
