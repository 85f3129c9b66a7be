"""The whole page: its head and the four tabs."""

from typing import Any

import gradio as gr

from app import answers_tab, api, arena_tab, board_tab, compare_tab, dataset_tab, markup
from app.answers import AnswerSource
from app.context import Context, session_of

CACHE_SECONDS = (600, 3600)  # how often Gradio looks, and how old a picture of a past visit may get


WHAT = {"pictures": "Same prompt, same noise, two models", "answers": "Same picture, same question, two models"}


def build(ctx: Context) -> gr.Blocks:
    """The page, not launched."""
    blocks = gr.Blocks(title="mmalign", analytics_enabled=False, delete_cache=CACHE_SECONDS, fill_width=True)
    with blocks:
        head = markup.hero(ctx.source.title, WHAT[ctx.arena.sides.kind])
        gr.HTML(head + markup.notice(ctx.source.notice), elem_id="hero")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Compare", id="compare", elem_id="compare"):
                source = ctx.source
                first = answers_tab.build(ctx, source) if isinstance(source, AnswerSource) else compare_tab.build(ctx)
            with gr.Tab("Arena", id="arena", elem_id="arena") as arena:
                arena_tab.build(ctx, arena)
            with gr.Tab("Leaderboard", id="leaderboard", elem_id="leaderboard") as board:
                board_tab.build(ctx, board)
            with gr.Tab("Dataset", id="dataset", elem_id="dataset") as data:
                dataset_tab.build(ctx, data)
        api.build(ctx)
        if ctx.source.cheap:  # pictures at once, without a press; a large model waits to be asked
            blocks.load(**first)

        def leave(request: gr.Request) -> None:  # the page was closed: what was being made for it stops
            ctx.jobs.stop(session_of(request))

        blocks.unload(leave)
    return blocks


def refuse_files(blocks: Any) -> None:
    """``ValueError`` where a component takes a file from visitors: none does, and the upload route is shut."""
    for component in blocks.blocks.values():
        takes = isinstance(component, gr.Image | gr.File | gr.UploadButton | gr.Gallery | gr.ImageSlider)
        if takes and getattr(component, "interactive", None) is not False:
            raise ValueError(f"{type(component).__name__} {component.elem_id!r} must have interactive=False")
