"""The report of a VLM benchmark: base and aligned side by side under each rule, with intervals and examples."""

from collections.abc import Sequence
from pathlib import Path

from mmalign.evaluation import Estimate, MeanDifference
from mmalign.evaluation.vlm.answering import open_picture
from mmalign.evaluation.vlm.measures import Comparison, Section
from mmalign.evaluation.vlm.result import INTERVAL, Example, VLMEvaluation, shown
from mmalign.report.figures import whiskers
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.page import POLICY, picture_figure
from mmalign.report.style import CSS

PICTURE_SIDE = 360


def write_vlm_report(evaluation: VLMEvaluation, file: Path, images: Path | None = None) -> Path:
    """One HTML file without scripts. ``images``: the folder with the pictures of the examples; None leaves them out."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(vlm_page(evaluation, images), encoding="utf-8")
    return unfinished.replace(file)


def vlm_page(evaluation: VLMEvaluation, images: Path | None = None) -> str:
    """The whole page as HTML text."""
    title = f"{evaluation.benchmark}, base and aligned"
    first = evaluation.main_sections()
    sections = [*first, *(section for section in evaluation.sections if section not in first)]
    body = join([*(_section(section, chart=section in first) for section in sections), _examples(evaluation, images)])
    notes = join(markup('<p class="note">{}</p>', note) for note in evaluation.notes)
    return markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{} · mmalign</title><style>{}</style></head>\n<body>\n"
        '<header><p class="overline">mmalign VLM evaluation</p><h1>{}</h1><p>{}</p>'
        '<p class="quiet">Base: {}. Aligned: {}. Shares are in per cent.</p>{}</header>\n'
        "<main>{}{}{}</main>\n<footer>Written by mmalign.</footer>\n</body></html>\n",
        POLICY, title, Markup(CSS), title, evaluation.summary(), evaluation.base, evaluation.aligned,
        _tiles(evaluation), notes, body, _settings(evaluation),
    ).text  # fmt: skip


def _tiles(evaluation: VLMEvaluation) -> Markup:
    boxes = [
        markup(
            '<div class="tile"><span>{}</span><strong>{} → {}</strong><em class="{}">{}</em></div>',
            row.name, shown(row, row.base, bounds=False), shown(row, row.aligned, bounds=False), _mark(row),
            shown(row, row.difference, sign="+"),
        )
        for section in evaluation.main_sections()
        for row in section.rows
    ]  # fmt: skip
    return markup('<div class="tiles">{}</div>', join(boxes))


def _section(section: Section, *, chart: bool) -> Markup:
    columns = ("", "base", "aligned", "difference")
    head = join(markup('<th scope="col">{}</th>', column) for column in columns)
    body = join(
        markup(
            '<tr><th scope="row">{}</th>{}{}{}</tr>', _named(row), _cell(row, row.base), _cell(row, row.aligned),
            _cell(row, row.difference, sign="+", css_class=_mark(row)),
        )
        for row in section.rows
    )  # fmt: skip
    table = markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', head, body)
    return markup(
        '<section><h2>{} <small class="quiet">{} rules</small></h2><div class="measured">{}{}</div></section>',
        section.title, section.rules, _chart(section) if chart else NOTHING, table,
    )  # fmt: skip


def _chart(section: Section) -> Markup:
    rows = [
        (_named(row), MeanDifference(row.base, row.aligned, row.difference, n_prompts=0))
        for row in section.rows
        if row.unit == "share" and row.base and row.aligned and row.difference
    ]
    if not rows:
        return NOTHING
    legend = markup(
        '<div class="legend"><span style="--key: var(--muted)">base</span>'
        '<span style="--key: var(--accent)">aligned</span></div>'
    )
    return markup("<figure>{}{}</figure>", legend, whiskers(f"{section.title}, {section.rules} rules", rows))


def _cell(row: Comparison, estimate: Estimate | None, *, sign: str = "", css_class: str = "") -> Markup:
    if estimate is None:
        return markup("<td>not defined</td>")
    number, _, bounds = shown(row, estimate, sign=sign).partition(" ")
    return markup('<td class="{}">{}<small>{}</small></td>', css_class, number, bounds)


def _named(row: Comparison) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(row.better or "", "")
    return f"{row.name}{arrow}"


def _mark(row: Comparison) -> str:
    return {"better": "good", "worse": "bad"}.get(row.verdict, "")


def _examples(evaluation: VLMEvaluation, images: Path | None) -> Markup:
    if not evaluation.examples:
        return NOTHING
    text = "Largest gains of the aligned model first, then its largest losses, judged by the official rules."
    body = join(_example(example, images) for example in evaluation.examples)
    return markup('<section><h2>Examples</h2><p class="quiet">{}</p>{}</section>', text, body)


def _example(example: Example, images: Path | None) -> Markup:
    rows = [
        (f"base: {example.base_verdict}", example.base, "good" if example.gain < 0 else "bad"),
        (f"aligned: {example.aligned_verdict}", example.aligned, "good" if example.gain > 0 else "bad"),
    ]
    table = join(
        markup('<tr><th scope="row" class="{}">{}</th><td class="text">{}</td></tr>', mark, name, text or "(nothing)")
        for name, text, mark in rows
    )
    return markup(
        "<figure><h3>{}</h3><p>{}: {}</p>{}"
        '<div class="scroll"><table><tbody>{}</tbody></table></div></figure>',
        example.question, example.image, example.truth, _picture(example, images), table,
    )  # fmt: skip


def _picture(example: Example, images: Path | None) -> Markup:
    if images is None or not (images / example.image).is_file():
        return NOTHING
    picture = open_picture(images / example.image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture_figure(picture, example.image)


def _settings(evaluation: VLMEvaluation) -> Markup:
    settings: Sequence[tuple[str, object]] = [
        ("base", evaluation.base), ("aligned", evaluation.aligned), ("questions", evaluation.n_questions),
        ("pictures", evaluation.n_pictures), *evaluation.settings.items(), ("intervals", INTERVAL),
        ("resamples", evaluation.bootstrap), ("seed", evaluation.seed),
    ]  # fmt: skip
    rows = join(markup('<tr><th scope="row">{}</th><td class="text">{}</td></tr>', *pair) for pair in settings)
    return markup(
        '<section><h2>Settings</h2><div class="scroll"><table><tbody>{}</tbody></table></div></section>', rows
    )
