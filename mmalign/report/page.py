"""Puts the report together: one HTML file without scripts that asks nothing of the network."""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.report.curves import curves_section
from mmalign.report.markup import NOTHING, Markup, join, markup
from mmalign.report.measured import measured_section, tiles, verdict
from mmalign.report.run import Run, read_run
from mmalign.report.style import CSS

FILE_NAME = "report.html"
WIDEST_PICTURE = 1600
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run folder from whatever the folder holds, and give its path.

    Parts the run does not have are left out; parts that are there but unreadable are named at the end of the page.
    """
    folder = Path(run_dir)
    page = build_page(read_run(folder))
    unfinished = folder / (FILE_NAME + ".unfinished")
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(folder / FILE_NAME)


def build_page(run: Run) -> str:
    """The whole page as HTML text."""
    sections = {
        "before-after": ("Before and after", _before_after(run)),
        "measured": ("Measured", measured_section(run.evaluation)),
        "training": ("Training", curves_section(run)),
        "pictures": ("Pictures on the way", _pictures(run)),
        "data": ("Data", _data(run)),
        "reproduce": ("Reproduce", _reproduce(run)),
    }
    present = {anchor: section for anchor, section in sections.items() if section[1].text}
    links = join(markup('<a href="#{}">{}</a>', anchor, title) for anchor, (title, _) in present.items())
    page = markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{} · mmalign</title><style>{}</style></head>\n<body>\n"
        '<header><p class="overline">mmalign run report</p><h1>{}</h1>{}{}<nav>{}</nav></header>\n'
        "<main>{}</main>\n<footer>{}Written by mmalign.</footer>\n</body></html>\n",
        POLICY, run.name, Markup(CSS), run.name, verdict(run.evaluation), tiles(run), links,
        join(body for _, body in present.values()), _notes(run),
    )  # fmt: skip
    return page.text


def _before_after(run: Run) -> Markup:
    if run.before_after is None:
        return NOTHING
    text = "Base and aligned on the same prompts and seeds."
    figure = picture_figure(run.before_after, "base and aligned, same prompts and seeds")
    return markup(
        '<section id="before-after" class="before"><h2>Before and after</h2><p class="quiet">{}</p>{}</section>',
        text,
        figure,
    )


def _pictures(run: Run) -> Markup:
    if not run.pictures:
        return NOTHING
    shown = len(run.pictures)
    text = "The same prompts and seeds throughout"
    text += f"; {shown} of {run.n_pictures} grids, evenly spaced." if shown < run.n_pictures else "."
    strip = join(picture_figure(picture, f"step {step}") for step, picture in run.pictures)
    head = markup('<h2>Pictures on the way</h2><p class="quiet">{} Scroll sideways.</p>', text)
    return markup('<section id="pictures">{}<div class="strip" tabindex="0">{}</div></section>', head, strip)


def picture_figure(picture: Image.Image, caption: str) -> Markup:
    """The picture as PNG inside the page, re-encoded so that nothing but pixels comes along, at most 1600 px wide."""
    picture = picture.copy()
    picture.thumbnail((WIDEST_PICTURE, WIDEST_PICTURE * 4), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return markup(
        '<figure class="picture"><img alt="{}" loading="lazy" width="{}" height="{}" src="data:image/png;base64,{}">'
        "<figcaption>{}</figcaption></figure>",
        f"picture grid: {caption}", *picture.size, data, caption,
    )  # fmt: skip


def _data(run: Run) -> Markup:
    if run.data is None:
        return NOTHING
    text = "\n".join([run.data.strip(), *_left_out(run)])
    return markup('<section id="data"><h2>Data</h2><pre class="command">{}</pre></section>', text)


def _left_out(run: Run) -> Iterator[str]:
    """Rows that were found to be unusable only when they were trained on, as the log names them."""
    named = {name: reason for line in run.training for name, reason in line.get("unusable", {}).items()}
    if named:
        visits = max(int(line.get("unusable_rows", 0)) for line in run.training)
        yield f"While training, {visits} visits of {len(named)} rows were left out, as they could not be used:"
        yield from (f"  {name}: {reason}" for name, reason in named.items())


def _reproduce(run: Run) -> Markup:
    versions = dict(run.versions or {})
    command = versions.pop("command", None)
    parts = []
    if command is not None:
        text = command if isinstance(command, str) else " ".join(map(str, command))
        parts.append(markup('<p class="quiet">The command of this run:</p><pre class="command">{}</pre>', text))
    if run.config is not None:
        parts.append(markup("<details><summary>Resolved configuration</summary><pre>{}</pre></details>", run.config))
    if versions:
        rows = join(
            markup('<tr><th scope="row">{}</th><td class="text">{}</td></tr>', name, value)
            for name, value in _flat(versions)
        )
        table = markup('<div class="scroll"><table>{}</table></div>', rows)
        parts.append(markup("<details><summary>Versions and machine</summary>{}</details>", table))
    if not parts:
        return NOTHING
    return markup('<section id="reproduce"><h2>Reproduce</h2>{}</section>', join(parts))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", str(value)


def _notes(run: Run) -> Markup:
    return join(markup("<p>Not shown: {}</p>", note) for note in run.notes)
