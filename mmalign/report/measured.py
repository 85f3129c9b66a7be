"""The head of the page and the section of measured results: win rate, tiles, dots with whiskers, the table."""

from mmalign.evaluation import Estimate, ImageEvaluation, MeanDifference, WinRate
from mmalign.report.figures import smooth, whiskers
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.run import Run, series


def verdict(evaluation: ImageEvaluation | None) -> Markup:
    """The win rate, large, on a scale from 0 to 1 with its interval, and what it means in a sentence."""
    if evaluation is None:
        return NOTHING
    wins = evaluation.win_rate
    rate = markup('<div class="rate"><small>win rate over the base model</small>{}</div>', f"{wins.rate:.3f}")
    scale = markup(
        '<div class="scale" role="img" aria-label="{}"><i class="track"></i><i class="half"></i>'
        '<i class="span" style="left:{}%;width:{}%"></i><i class="dot" style="left:{}%"></i>'
        '<b>base always wins</b><b class="middle">0.5</b><b class="right">aligned always wins</b></div>',
        f"win rate {wins}", f"{100 * wins.low:.2f}", f"{100 * (wins.high - wins.low):.2f}", f"{100 * wins.rate:.2f}",
    )  # fmt: skip
    return markup('<div class="verdict">{}{}</div><p>{}</p>', rate, scale, _sentence(evaluation, wins))


def tiles(run: Run) -> Markup:
    """Up to five small facts: all correct, mean score, held-out accuracy, last loss, steps."""
    facts = []
    if run.evaluation is not None:
        rows = [
            ("all correct", run.evaluation.all_correct),
            (f"mean score, {run.evaluation.scorer}", run.evaluation.score),
        ]
        for name, row in rows:
            if row is not None:
                change = row.difference
                interval = f"{change.value:+z.3f} [{change.low:+z.3f}, {change.high:+z.3f}]"
                facts.append((name, f"{row.base.value:.3f} → {row.aligned.value:.3f}", interval))
    for name, lines, key in (("held-out accuracy", run.held_out, "accuracy"), ("loss, smoothed", run.training, "loss")):
        steps, values = series(lines, key)
        if len(values):
            course = values if lines is run.held_out else smooth(values)
            facts.append((name, f"{course[-1]:.3g}", f"at step {steps[-1]:.0f}; first {course[0]:.3g}"))
    boxes = [markup('<div class="tile"><span>{}</span><strong>{}</strong><em>{}</em></div>', *fact) for fact in facts]
    return markup('<div class="tiles">{}</div>', join(boxes)) if boxes else NOTHING


def measured_section(evaluation: ImageEvaluation | None) -> Markup:
    """Attributes as dots with whiskers, then every number in a table, then the rules behind them."""
    if evaluation is None:
        return NOTHING
    rules = (
        f"Judged by {evaluation.scorer} on {evaluation.size}, the same for both models. "
        f" Equal scores count one half: {evaluation.win_rate.wins} won, {evaluation.win_rate.ties} tied, "
        f"{evaluation.win_rate.losses} lost. Intervals are 95 %, from {evaluation.bootstrap} resamples of the prompts."
    )
    parts = [
        markup('<h2>Measured</h2><p class="quiet">{}</p>', rules),
        markup('<div class="measured">{}{}</div>', _attributes(evaluation), _table(evaluation)),
    ]
    return markup('<section id="measured">{}</section>', join(parts))


def _sentence(evaluation: ImageEvaluation, wins: WinRate) -> Markup:
    if wins.low > 0.5:
        meaning = "The aligned model is better: the whole interval lies above one half."
    elif wins.high < 0.5:
        meaning = "The aligned model is worse: the whole interval lies below one half."
    else:
        meaning = "No difference is shown: the interval contains one half."
    return markup(
        "95 % interval {} to {}, {} prompts, judged by {}. {}",
        f"{wins.low:.3f}", f"{wins.high:.3f}", evaluation.n_prompts, evaluation.scorer, meaning,
    )  # fmt: skip


def _attributes(evaluation: ImageEvaluation) -> Markup:
    rows = [("all correct", evaluation.all_correct)] if evaluation.all_correct else []
    rows += evaluation.attributes.items()
    if not rows:
        return NOTHING
    legend = markup(
        '<div class="legend"><span style="--key: var(--muted)">base</span>'
        '<span style="--key: var(--accent)">aligned</span></div>'
    )
    return markup(
        "<figure><h3>Share of pictures that get it right</h3>{}{}</figure>",
        legend, whiskers("Share of pictures that get each attribute right", rows),
    )  # fmt: skip


def _table(evaluation: ImageEvaluation) -> Markup:
    groups = [
        ("", {"score": evaluation.score} | ({"all correct": evaluation.all_correct} if evaluation.all_correct else {}))
    ]
    groups += [
        ("correct, by attribute", evaluation.attributes),
        ("diversity: mean distance between pictures", evaluation.diversity),
    ]
    bodies = []
    for title, rows in groups:
        head = markup('<tr><th colspan="4" scope="rowgroup">{}</th></tr>', title) if title else NOTHING
        if rows:
            bodies.append(
                markup(
                    '<tbody class="group">{}{}</tbody>',
                    head,
                    join(_row(name, row, evaluation.n_prompts) for name, row in rows.items()),
                )
            )
    columns = ("", "base", "aligned", "difference")
    head = join(markup('<th scope="col">{}</th>', column) for column in columns)
    return markup('<div class="scroll"><table><thead><tr>{}</tr></thead>{}</table></div>', head, join(bodies))


def _row(name: str, row: MeanDifference, n_prompts: int) -> Markup:
    change = row.difference
    mark = "good" if change.low > 0 else "bad" if change.high < 0 else ""
    cells = [_cell(row.base, "side", ""), _cell(row.aligned, "side", ""), _cell(change, mark, "+")]
    # Only some prompts ask for some attributes; a number over fewer prompts says so.
    count = markup("<small>{} prompts</small>", row.n_prompts) if row.n_prompts != n_prompts else NOTHING
    return markup('<tr><th scope="row">{}{}</th>{}</tr>', name, count, join(cells))


def _cell(estimate: Estimate, css_class: str, sign: str) -> Markup:
    value, low, high = (f"{number:{sign}z.3f}" for number in (estimate.value, estimate.low, estimate.high))
    return markup('<td class="{}">{}<small>[{}, {}]</small></td>', css_class, value, low, high)
