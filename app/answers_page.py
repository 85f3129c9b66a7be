"""The page for vision-language models: a picture, a question, two answers. What happens is in :mod:`app.answers`."""

from typing import Any

import gradio as gr

from app import markup, validation
from app.answers import Answering, Answers, marked
from app.context import GENERATIONS_PER_MINUTE, explained
from app.limits import RateLimit, visitor_of
from app.page import CACHE_SECONDS

LEGEND = "Marked words are in one answer only. Answers are greedy: the likeliest word each time, nothing is drawn."


def build(answering: Answering, *, behind_proxy: bool = False) -> gr.Blocks:
    """The page, not launched."""
    limit = RateLimit(GENERATIONS_PER_MINUTE, "questions")
    names, questions = list(answering.pictures), answering.questions()
    blocks = gr.Blocks(title="mmalign", analytics_enabled=False, delete_cache=CACHE_SECONDS, fill_width=True)

    def on_picture(picture: Any) -> Any:
        with explained():
            chosen = validation.check_choice(picture, "picture", names)
        return gr.update(value=answering.pictures[chosen], alt_text=f"the picture that is asked about: {chosen}")

    def on_ask(picture: Any, question: Any, request: gr.Request) -> str:
        with explained():
            limit.take(visitor_of(request, behind_proxy=behind_proxy))
            return answers_of(answering.ask(picture, question), answering.name)

    with blocks:
        gr.HTML(markup.hero(f"{answering.base} vs {answering.name}", "Same picture, same question, two models"))
        with gr.Column(elem_classes="compare-grid"):
            with gr.Column(elem_classes="ask", min_width=0):
                picture = gr.Dropdown(names, value=names[0], label="Picture", elem_id="picture")
                question = gr.Textbox(
                    questions[0], label="Question", max_length=validation.LONGEST_PROMPT, elem_id="question"
                )
                button = gr.Button("Ask both", variant="primary", elem_id="ask-both")
                gr.Examples([[example] for example in questions], question, api_visibility="private")
            with gr.Column(elem_classes="show", min_width=0):
                shown = gr.Image(
                    answering.pictures[names[0]],
                    format="png",
                    type="pil",
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="asked",
                    elem_classes=["picture", "tiny", "asked"],
                    alt_text=f"the picture that is asked about: {names[0]}",
                )
                said = gr.HTML(markup.empty("No answers yet", "Press Ask both."), elem_id="answers")
        picture.change(on_picture, picture, shown, preprocess=False, api_visibility="private")
        asked: dict[str, Any] = {"fn": on_ask, "inputs": [picture, question], "outputs": said, "preprocess": False}
        asked |= {"concurrency_id": "answers", "concurrency_limit": 1}
        button.click(**asked, api_name="ask")
        question.submit(**asked, api_visibility="private")
    return blocks


def answers_of(said: Answers, name: str) -> str:
    """Both answers, beside or below each other."""
    if said.base == said.aligned:
        legend = '<p class="quiet">Both say the same.</p>'
    else:
        legend = f'<p class="quiet">{LEGEND}</p>'
    sides = (("a", "base", said.base, said.aligned), ("b", name, said.aligned, said.base))
    cards = "".join(
        f'<section class="answer" aria-label="{markup.text(who)}"><div class="caption {side}">'
        f'<span class="name">{markup.text(who)}</span></div><p>{marked(own, other) or "(nothing)"}</p></section>'
        for side, who, own, other in sides
    )
    return f'<div class="answers" role="status">{cards}</div>{legend}'
