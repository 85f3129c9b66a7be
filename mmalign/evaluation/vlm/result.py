"""What came out of a benchmark: base and aligned side by side under each rule, with intervals and examples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmalign.evaluation.vlm.measures import Comparison, Section
from mmalign.evaluation.winrate import Estimate

MAIN_TITLES = ("mean of splits", "captions", "descriptions", "questions, all", "both parts")
"""Sections that sum a benchmark up."""
SUMMARY = (
    *("F1", "yes ratio", "CHAIRs", "CHAIRi", "object recall", "words per caption"),
    *("CHAIR", "Cover", "Hal", "AMBER score", "words per description"),
)
INTERVAL = "95 % percentile bootstrap over pictures, the same resamples for both models"


@dataclass(frozen=True)
class Example:
    """A question that the two models answer differently well. ``gain`` > 0: the aligned model does better."""

    question: str
    image: str
    truth: str
    base: str
    aligned: str
    base_verdict: str
    aligned_verdict: str
    gain: float


@dataclass(frozen=True)
class VLMEvaluation:
    """``sections``: measures by title and rule. ``settings``: everything else the numbers depend on, as it is shown."""

    benchmark: str
    base: str
    aligned: str
    n_pictures: int
    n_questions: int
    sections: list[Section]
    settings: Mapping[str, str]
    notes: list[str]
    examples: list[Example]
    bootstrap: int
    seed: int

    def find(self, section: str, measure: str, rules: str = "official") -> Comparison:
        """One measure; KeyError with what there is."""
        for one in self.sections:
            if (one.title, one.rules) == (section, rules):
                for row in one.rows:
                    if row.name == measure:
                        return row
        known = [(one.title, one.rules, row.name) for one in self.sections for row in one.rows]
        raise KeyError(f"no {measure!r} in {section!r} under rules {rules!r}; there are {known}")

    def main_sections(self) -> list[Section]:
        """Those of the first rules that sum up; of a single split, that split."""
        found = [one for one in self.sections if one.title in MAIN_TITLES and one.rules != "strict"]
        return [one for one in found if one.rules != "corrected"] or self.sections[:1]

    def summary(self) -> str:
        """One line with the main measures: ``F1 84.51 -> 86.02 (+1.51 [+0.40, +2.63]); yes ratio ...``."""
        told = [
            f"{row.name} {shown(row, row.base, bounds=False)} -> {shown(row, row.aligned, bounds=False)} "
            f"({shown(row, row.difference, sign='+')})"
            for section in self.main_sections()
            for row in section.rows
            if row.name in SUMMARY
        ]
        return f"{self.benchmark} over {self.n_questions} questions about {self.n_pictures} pictures: {'; '.join(told)}"

    def to_json(self) -> str:
        """JSON text with ``kind: vlm``."""
        return json.dumps({"kind": "vlm", "interval": INTERVAL, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def print(self, console: Console) -> None:
        """The table, then the settings and notes."""
        console.print(self.table())
        for name, value in self.settings.items():
            console.print(f"{name}: {value}", soft_wrap=True, markup=False, highlight=False)
        for note in self.notes:
            console.print(note, soft_wrap=True, markup=False, highlight=False)

    def table(self) -> Table:
        """A line per measure; the difference is coloured where its interval lies on one side of zero."""
        title = f"{self.benchmark}: {self.n_questions} questions about {self.n_pictures} pictures"
        table = Table(title=escape(title), title_justify="left")
        table.add_column("")
        for side in ("base", "aligned"):
            table.add_column(side, justify="right")
        table.add_column("difference, 95 % interval", justify="right")
        for number, section in enumerate(self.sections):
            if number:
                table.add_section()
            table.add_row(f"[dim]{escape(section.title)} ({escape(section.rules)} rules)[/]")
            for row in section.rows:
                colour = {"better": "green", "worse": "red"}.get(row.verdict, "default")
                change = f"[{colour}]{escape(shown(row, row.difference, sign='+'))}[/]"
                cells = [shown(row, side, bounds=False) for side in (row.base, row.aligned)]
                table.add_row(f"  {escape(row.name)}", *cells, change)
        return table


def shown(row: Comparison, estimate: Estimate | None, *, sign: str = "", bounds: bool = True) -> str:
    """``46.2 [44.0, 48.4]``: shares in per cent; ``not defined`` where there is none."""
    if estimate is None:
        return "not defined"
    factor, places = (100, 2) if row.unit == "share" else (1, 2)
    value, low, high = (f"{factor * one:{sign}z.{places}f}" for one in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]" if bounds else value


def choose_examples(examples: Sequence[Example], each: int = 5) -> list[Example]:
    """The largest gains, then the largest losses, ``each`` of either at most; ties in the order of the questions."""
    gains = sorted((one for one in examples if one.gain > 0), key=lambda one: -one.gain)
    losses = sorted((one for one in examples if one.gain < 0), key=lambda one: one.gain)
    return [*gains[:each], *losses[:each]]
