"""The Compare tab of vision-language models: picture, question, two answers. What happens is in :mod:`app.answers`."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import markup, validation
from app.answers import Answers, AnswerSource, marked
from app.context import Context, explained

LEGEND = "Marked words are in one answer only. Answers are greedy: the likeliest word each time, nothing is drawn."


def build(ctx: Context, source: AnswerSource) -> dict[str, Any]:
    """The tab; gives the event that asks, for the page's first load."""
    ui = _components(source)
    pictures = list(source.pictures)

    def on_ask(left: Any, right: Any, picture: Any, question: Any, request: gr.Request) -> str:
        with explained():
            ctx.count(ctx.generations, request)
            return answers_of(source.ask(left, right, picture, question))

    def on_choose(left: Any, right: Any, question: Any, picked: gr.SelectData, request: gr.Request) -> list[Any]:
        with explained():
            name = pictures[validation.check_whole(picked.index, "picture", 0, len(pictures) - 1)]
        update = gr.update(value=source.pictures[name], alt_text=_alt(name))
        return [name, update, on_ask(left, right, name, question, request)]

    inputs = [ui["left"], ui["right"], ui["chosen"], ui["question"]]
    asked: dict[str, Any] = {"fn": on_ask, "inputs": inputs, "outputs": ui["said"], "show_progress_on": ui["said"]}
    asked |= {"concurrency_id": "answers", "concurrency_limit": 1, "preprocess": False, "api_visibility": "private"}
    ui["button"].click(**asked)
    ui["question"].submit(**asked)
    choosing = {"inputs": [inputs[0], inputs[1], inputs[3]], "outputs": [ui["chosen"], ui["shown"], ui["said"]]}
    ui["chooser"].select(**{**asked, "fn": on_choose, **choosing})
    _api(ctx, source)
    return asked


def _components(source: AnswerSource) -> dict[str, Any]:
    names, pictures, questions = source.names, list(source.pictures), source.prompts()
    # No State: what arrives is checked by this app alone, and Gradio fills States in a step that is left out for it.
    ui: dict[str, Any] = {"chosen": gr.Textbox(pictures[0], visible=False)}
    with gr.Column(elem_classes="compare-grid"):
        with gr.Column(elem_classes="ask", min_width=0):
            with gr.Group():
                ui["left"] = gr.Dropdown(names, value=names[0], label="Left model", elem_id="left-model")
                ui["right"] = gr.Dropdown(names, value=names[1], label="Right model", elem_id="right-model")
                ui["question"] = gr.Textbox(
                    questions[0], label="Question", max_length=validation.LONGEST_PROMPT, elem_id="question"
                )
            ui["button"] = gr.Button("Ask both", variant="primary", elem_id="ask-both")
        with gr.Column(elem_classes="show", min_width=0):
            ui["shown"] = asked_picture("asked", value=source.pictures[pictures[0]], alt_text=_alt(pictures[0]))
            ui["said"] = gr.HTML(markup.empty("No answers yet", "Choose a picture, write a question, press Ask both."))
        with gr.Column(elem_classes="set", min_width=0):
            gr.Examples([[example] for example in questions], ui["question"], api_visibility="private")
            ui["chooser"] = _thumbnails([(source.pictures[name], name) for name in pictures])
    return ui


def _thumbnails(pictures: Sequence[tuple[Any, str]]) -> gr.Gallery:
    how = {"allow_preview": False, "interactive": False, "buttons": [], "format": "png", "height": "auto"}
    css = ["seeds", "chooser", "tiny"]
    return gr.Gallery(
        pictures, columns=4, label="Pictures", show_label=False, elem_classes=css, elem_id="pictures", **how
    )


def asked_picture(elem_id: str, **more: Any) -> gr.Image:
    """The picture that a question is about."""
    how = {"format": "png", "type": "pil", "show_label": False, "interactive": False, "buttons": ["fullscreen"]}
    return gr.Image(**how, elem_id=elem_id, elem_classes=["picture", "tiny", "asked"], **more)


def answers_of(said: Answers) -> str:
    """Both answers, beside or below each other."""
    alike = said.said_left == said.said_right
    legend = f'<p class="quiet">{"Both say the same." if alike else LEGEND}</p>'
    sides = (
        ("a", said.left, said.said_left, said.said_right),
        ("b", said.right, said.said_right, said.said_left),
    )
    cards = "".join(
        f'<section class="answer" aria-label="{markup.text(who)}"><div class="caption {side}">'
        f'<span class="name">{markup.text(who)}</span></div>{paragraph(marked(own, other))}</section>'
        for side, who, own, other in sides
    )
    return f'<div class="answers" id="answers" role="status">{cards}</div>{legend}'


def paragraph(words: str) -> str:
    """An answer, already HTML; one that says nothing says so."""
    return f"<p>{words}</p>" if words.strip() else '<p class="quiet">(says nothing)</p>'


def _api(ctx: Context, source: AnswerSource) -> None:
    def ask(left: str, right: str, picture: str, question: str, request: gr.Request) -> dict:
        """Both answers to a question about a picture of the server, which it names."""
        with explained():
            ctx.count(ctx.generations, request)
            said = source.ask(left, right, picture, question)
        return {"left": said.said_left, "right": said.said_right}

    gr.api(ask, api_name="ask", concurrency_id="answers")


def _alt(name: str) -> str:
    return f"the picture that is asked about: {name}"
