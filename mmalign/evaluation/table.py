"""The evaluation as a table for the terminal."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from mmalign.evaluation.winrate import MeanDifference

if TYPE_CHECKING:
    from mmalign.evaluation.images import ImageEvaluation


def comparison_table(evaluation: "ImageEvaluation") -> Table:
    """Rows: win rate, score, all correct, each attribute, diversity; coloured where the interval excludes zero."""
    table = Table(title=f"base vs aligned, judged by {escape(evaluation.scorer)}", title_justify="left")
    table.add_column("")
    for side in ("base", "aligned"):
        table.add_column(side, justify="right")
    table.add_column("difference, 95 % interval", justify="right")
    wins = evaluation.win_rate
    verdict = _colour(wins.low - 0.5, wins.high - 0.5)
    table.add_row(
        "win rate", "", f"{wins.rate:.3f}", f"[{verdict}]" + escape(f"[{wins.low:.3f}, {wins.high:.3f}]") + "[/]"
    )
    _add(table, "score", evaluation.score)
    if evaluation.all_correct is not None:
        _add(table, "all correct", evaluation.all_correct)
    for title, rows in (("correct by attribute", evaluation.attributes), ("diversity", evaluation.diversity)):
        if rows:
            table.add_section()
            table.add_row(f"[dim]{title}[/]")
        for name, row in rows.items():
            _add(table, f"  {name}", row)
    return table


def _add(table: Table, name: str, row: MeanDifference) -> None:
    change = row.difference
    text = f"{change.value:+z.3f} [{change.low:+z.3f}, {change.high:+z.3f}]"
    colour = _colour(change.low, change.high)
    table.add_row(escape(name), f"{row.base.value:.3f}", f"{row.aligned.value:.3f}", f"[{colour}]{escape(text)}[/]")


def _colour(low: float, high: float) -> str:
    return "green" if low > 0 else "red" if high < 0 else "default"
