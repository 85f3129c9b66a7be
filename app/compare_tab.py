"""The Compare tab: layout and wiring. What happens is in :mod:`app.compare`."""

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import markup, validation
from app.compare import Comparison, archive, compare, read_form
from app.context import Context, explained, new_file, session_of
from app.limits import unless_stopped
from app.views import PARTS, SIDE, present

SEEDS_AT_FIRST = 4  # where pictures cost next to nothing: one seed says little about a model
EMPTY = "Choose a prompt and press Generate (Ctrl + Enter). Both models start from the same noise."


def build(ctx: Context) -> dict[str, Any]:
    """The tab; gives the event that compares, for the page's first load."""
    with gr.Column(elem_classes="compare-grid"):
        with gr.Column(elem_classes="ask", min_width=0):
            form, buttons = _asked(ctx)
        with gr.Column(elem_classes="show", min_width=0):
            shown = _pictures()
        with gr.Column(elem_classes="set", min_width=0):
            form |= _settings(ctx, form["prompt"])
    return _wire(ctx, form, buttons, shown)


def _asked(ctx: Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """Models, prompt, and the buttons."""
    source, prompts = ctx.source, ctx.source.prompts()
    form: dict[str, Any] = {}
    with gr.Group():
        form["left"] = gr.Dropdown(source.names, value=source.names[0], label="Left model", elem_id="left-model")
        form["right"] = gr.Dropdown(source.names, value=source.names[1], label="Right model", elem_id="right-model")
        if source.live:
            form["prompt"] = gr.Textbox(
                prompts[0], label="Prompt", lines=2, max_lines=6, max_length=validation.LONGEST_PROMPT, elem_id="prompt"
            )
        else:
            form["prompt"] = gr.Dropdown(prompts, value=prompts[0], label="Prompt of the gallery", elem_id="prompt")
    with gr.Row():
        generate = gr.Button("Generate" if source.live else "Show", variant="primary", scale=3, elem_id="generate")
        stop = gr.Button("Stop", scale=1, min_width=80, elem_id="stop")
    return form, {"generate": generate, "stop": stop}


def _settings(ctx: Context, prompt: Any) -> dict[str, Any]:
    """Examples, how pictures are sampled, and what scores them."""
    prompts = ctx.source.prompts()
    if ctx.source.live:
        gr.Examples([[example] for example in prompts[:4]], prompt, label="Examples", api_visibility="private")
    form = _sampling(ctx, prompts[0])
    form["rewards"] = gr.Dropdown(
        ctx.scorers.names,
        value=ctx.scorers.at_first(prompts),
        multiselect=True,
        label="Reward scores",
        info="Never comparable with each other. One without weights here says what to download.",
        elem_id="rewards",
    )
    return form


def _sampling(ctx: Context, prompt: str) -> dict[str, Any]:
    """Seed, number of seeds, steps, guidance, LoRA scale, negative prompt; hidden where nothing is sampled."""
    live, settings = ctx.source.live, getattr(ctx.source, "settings", None)
    form: dict[str, Any] = {}
    with gr.Row():
        if live:
            most = validation.HIGHEST_SEED
            form["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=most, min_width=120)
        else:
            seeds = ctx.source.seeds(prompt)
            form["seed"] = gr.Dropdown(seeds, value=seeds[0], label="Seed", min_width=120)
        at_first = SEEDS_AT_FIRST if ctx.source.cheap else 1
        form["count"] = gr.Slider(1, validation.MOST_SEEDS, at_first, step=1, label="Seeds", min_width=140)
    if live:
        dice = gr.Button("New seed", size="sm", elem_id="new-seed")
        dice.click(lambda: random.randrange(100_000), None, form["seed"], api_visibility="private", queue=False)
    with gr.Accordion("Sampling", open=False, visible=live):
        form["negative"] = gr.Textbox(
            "", label="Negative prompt", info="Works with guidance above 1.", max_length=validation.LONGEST_PROMPT
        )
        form["steps"] = gr.Slider(1, validation.MOST_STEPS, settings.steps if settings else 30, step=1, label="Steps")
        form["guidance"] = gr.Slider(
            0, validation.HIGHEST_GUIDANCE, settings.guidance if settings else 5, step=0.1, label="Guidance"
        )
        form["scale"] = gr.Slider(
            *validation.LORA_SCALES,
            1.0,
            step=0.05,
            label="LoRA scale",
            info="0 is the base model, 1 as trained.",
            visible=bool(getattr(ctx.source, "has_lora", False)),
        )
    return form


def _pictures() -> dict[str, Any]:
    shown: dict[str, Any] = {"key": gr.State(None), "index": gr.State(0)}
    shown["view"] = gr.Radio(list(validation.VIEWS), value=SIDE, show_label=False, container=False, elem_id="view")
    shown["message"] = gr.HTML(markup.empty("No pictures yet", EMPTY), elem_id="compare-message")
    common = {"format": "png", "type": "pil", "show_label": False, "buttons": ["fullscreen"], "interactive": False}
    with gr.Row(elem_classes="pair"):
        for side, name in (("a", "left"), ("b", "right")):
            with gr.Column(min_width=150):
                shown[name] = gr.Image(**common, elem_id=f"picture-{name}", elem_classes="picture", visible=False)
                shown[f"caption_{side}"] = gr.HTML(elem_id=f"caption-{name}")
    shown["slider"] = gr.ImageSlider(
        format="png", type="pil", show_label=False, interactive=False, visible=False, max_height=720, elem_id="slider"
    )
    shown["difference"] = gr.Image(**common, visible=False, elem_id="difference", elem_classes="picture")
    shown["flicker"] = gr.HTML(visible=False, elem_id="flicker")
    shown["summary"] = gr.HTML(elem_id="compare-summary")
    shown["grid"] = gr.Gallery(
        format="png",
        columns=4,
        show_label=False,
        height="auto",
        allow_preview=False,
        visible=False,
        interactive=False,
        elem_classes="seeds",
        elem_id="seed-grid",
        buttons=[],
    )
    shown["download"] = gr.DownloadButton(
        "Download the pictures with what made them (.zip)", visible=False, size="sm", elem_id="download"
    )
    return shown


def _wire(ctx: Context, form: dict[str, Any], buttons: dict[str, Any], shown: dict[str, Any]) -> dict[str, Any]:
    names = ("left", "right", "prompt", "negative", "seed", "count", "steps", "guidance", "scale", "rewards")
    inputs = [form[name] for name in names]
    outputs = [shown[name] for name in PARTS]
    run = partial(_run, ctx)

    # One name per argument: they are the parameters of the API too.
    def on_generate(
        left: Any,
        right: Any,
        prompt: Any,
        negative_prompt: Any,
        seed: Any,
        seeds: Any,
        steps: Any,
        guidance: Any,
        lora_scale: Any,
        rewards: Any,
        view: Any,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),
    ) -> list[Any]:
        with explained():
            view = validation.check_choice(view, "view", validation.VIEWS)
        values = (left, right, prompt, negative_prompt, seed, seeds, steps, guidance, lora_scale, rewards)
        key, comparison = run(values, request, progress)
        parts = present(comparison, 0, view, _zipped(comparison))
        return [key, 0, *(parts[name] for name in PARTS)]

    def on_view(key: Any, index: Any, view: Any) -> list[Any]:
        if key is None:
            return [gr.skip()] * len(PARTS)
        with explained():
            view = validation.check_choice(view, "view", validation.VIEWS)
            parts = present(ctx.kept.get(key), index, view)
        return [parts[name] if name != "grid" else gr.skip() for name in PARTS]

    def on_choose(key: Any, view: Any, chosen: gr.SelectData) -> list[Any]:
        with explained():
            index = validation.check_whole(chosen.index, "picture", 0, 2 * validation.MOST_SEEDS - 1) // 2
        return [index, *on_view(key, index, view)]

    def on_stop(request: gr.Request) -> Any:
        stopped = ctx.jobs.stop(session_of(request))
        words = "Stopped. Nothing of it was kept." if stopped else "Nothing was running."
        return gr.update(value=markup.notice(words), visible=True)

    everything = [*inputs, shown["view"]]
    common: dict[str, Any] = {"fn": on_generate, "inputs": everything}
    # What arrives is checked by this app alone: Gradio's own messages repeat what was sent as it is.
    common |= {"concurrency_id": "pictures", "concurrency_limit": 1, "preprocess": False}
    results = [shown["key"], shown["index"], *outputs]
    event = buttons["generate"].click(outputs=results, api_name="compare", show_progress_on=shown["summary"], **common)
    events = [event]
    if ctx.source.live:
        events.append(form["prompt"].submit(outputs=results, api_visibility="private", **common))
    else:
        form["prompt"].change(partial(_seeds_of, ctx), form["prompt"], form["seed"], api_visibility="private")
    buttons["stop"].click(on_stop, None, shown["message"], cancels=events, queue=False, api_visibility="private")
    state = [shown["key"], shown["index"], shown["view"]]
    shown["view"].change(on_view, state, outputs, api_visibility="private")
    shown["grid"].select(on_choose, [state[0], state[2]], [shown["index"], *outputs], api_visibility="private")
    return {**common, "outputs": results, "api_visibility": "private", "show_progress_on": shown["summary"]}


def _run(ctx: Context, values: tuple[Any, ...], request: gr.Request, progress: Any) -> tuple[str, Comparison]:
    """Sample, score and keep; a problem becomes a message."""
    with explained():
        ctx.count(ctx.generations, request)
        form = read_form(ctx.source, ctx.scorers, *values)
        session = session_of(request)
        event = ctx.jobs.start(session)
        try:
            comparison = compare(ctx.source, ctx.scorers, form, progress, partial(unless_stopped, event))
        finally:
            ctx.jobs.finish(session, event)
        return ctx.kept.put(comparison), comparison


def _seeds_of(ctx: Context, prompt: Any) -> Any:
    with explained():
        seeds = ctx.source.seeds(validation.check_choice(prompt, "prompt", ctx.source.prompts()))
    return gr.update(choices=seeds, value=seeds[0])


def _zipped(comparison: Comparison) -> Path:
    name = re.sub(r"[^A-Za-z0-9]+", "-", comparison.left[0].prompt)[:40].strip("-") or "pictures"
    file = new_file(f"{name}.zip")
    file.write_bytes(archive([comparison.left, comparison.right]))
    return file
