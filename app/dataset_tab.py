"""The Dataset tab: layout and wiring. What happens is in :mod:`app.dataset`."""

from typing import Any

import gradio as gr

from app import dataset, markup
from app.context import Context, explained
from app.markup import text
from mmalign.arena import HoldOut
from mmalign.arena.export import FORMS, FORMS_OF

ANY = "any model"


def build(ctx: Context, tab: gr.Tab) -> None:
    """The tab; it is filled when a visitor goes there and whenever a filter changes."""
    with gr.Row():
        words = gr.Textbox("", label="Prompt contains", max_length=200, elem_id="search")
        model = gr.Dropdown([ANY, *ctx.source.names], value=ANY, label="Model", elem_id="dataset-model")
        outcome = gr.Dropdown(list(dataset.OUTCOMES), value="all", label="Vote")
    rows = gr.HTML(markup.empty("No votes yet", "What the Arena collects is listed here."), elem_id="dataset-rows")
    with gr.Accordion("Contact sheet", open=True, visible=ctx.arena.sides.kind == "pictures"):
        sheet = gr.Image(
            format="png",
            type="pil",
            interactive=False,
            show_label=False,
            buttons=["fullscreen"],
            visible=False,
            elem_id="sheet",
            alt_text="The pictures of the newest votes: the preferred one above the other",
        )
    gr.HTML('<h3 class="part">Export for training</h3>')
    units = HoldOut().units(ctx.arena.sides.kind)
    explain = f"Exported votes train and no longer score the board; a share of the {units} is held out, never exported."
    gr.HTML(f'<p class="quiet">{explain}</p>')
    with gr.Row():
        choices = [(f"{name}: {FORMS[name]}", name) for name in FORMS_OF[ctx.arena.sides.kind]]
        form = gr.Dropdown(choices, value=choices[0][1], label="Form", scale=3, elem_id="export-form")
        ties = gr.Dropdown(list(dataset.TIES.items()), value="drop", label="Ties", scale=2, elem_id="export-ties")
        button = gr.Button("Export", variant="primary", scale=1, interactive=ctx.may_export, elem_id="export")
    told = gr.HTML(elem_id="exported")
    file = gr.DownloadButton("Download the file", visible=False, elem_id="export-download")

    def on_show(words: Any, model: Any, outcome: Any, request: gr.Request) -> list[Any]:
        with explained():
            ctx.count(ctx.reads, request)
            votes = dataset.votes_of(ctx, words, None, "all")
            models = [ANY, *dataset.models_of(votes)]
            chosen = model if model in models else ANY
            votes = dataset.votes_of(ctx, words, None if chosen == ANY else chosen, outcome)
            picture = dataset.contact_sheet(votes)
        update = gr.update(choices=models, value=chosen)
        return [rows_of(votes), gr.update(value=picture, visible=picture is not None), update]

    def on_export(form: Any, ties: Any, request: gr.Request) -> list[Any]:
        with explained():
            ctx.count(ctx.generations, request)
            path, done = dataset.export(ctx, form, ties)
        words = "<br>".join(f"{text(line)}." for line in done.told())
        return [
            f'<div class="receipt" role="status">{words}</div>',
            gr.update(value=str(path), label=f"Download {path.name}", visible=True),
        ]

    filters, outputs = [words, model, outcome], [rows, sheet, model]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "preprocess": False}
    tab.select(on_show, filters, outputs, **quiet)
    words.submit(on_show, filters, outputs, **quiet)
    for field in (model, outcome):
        field.input(on_show, filters, outputs, **quiet)
    button.click(on_export, [form, ties], [told, file], concurrency_id="export", concurrency_limit=1, **quiet)


def rows_of(votes: list[Any]) -> str:
    """The newest votes as a table."""
    if not votes:
        return markup.empty("Nothing here", "No vote fits these filters.")
    rows = [
        [
            f'<td class="player">{text(vote.battle.prompt)}</td>',
            f"<td>{text(dataset.said(vote))}{_answers(vote)}</td>",
            f'<td class="number">{text(dataset.flags(vote))}</td>',
            f"<td>{text(', '.join(vote.ballot.tags) or '–')}</td>",
            f'<td class="number">{"training" if vote.exported else "board"}</td>',
        ]
        for vote in votes[: dataset.PAGE]
    ]
    more = f'<p class="quiet">The newest {dataset.PAGE} of {len(votes)}.</p>' if len(votes) > dataset.PAGE else ""
    return markup.table(["Prompt", "Vote", "Acceptable", "Tags", "Counts for"], rows) + more


def _answers(vote: Any) -> str:
    """The answers that were voted on, the preferred one first."""
    sides = list(vote.battle.shown)
    if vote.ballot.better == "right":
        sides.reverse()
    lines = [f"<li><b>{text(side.model)}</b> {text(side.answer)}</li>" for side in sides if side.answer is not None]
    return f'<ul class="said">{"".join(lines)}</ul>' if lines else ""
