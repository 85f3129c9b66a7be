"""The Arena tab: layout and wiring. What happens is in :mod:`app.arena`."""

from functools import partial
from typing import Any

import gradio as gr

from app import arena_markup, markup, validation
from app.answers_tab import asked_picture
from app.arena import IN_A_RANKING, Revealed, Shown, read_ballot, read_ranking
from app.compare import archive
from app.context import Context, explained, new_file
from mmalign.arena import TAGS

MODES = {"Two at a time": "pair", "Order four": "ranking"}
PAIR_SLOTS = ("left", "right")
OKS = [("acceptable", "yes"), ("not acceptable", "no")]


def build(ctx: Context, tab: gr.Tab) -> dict[str, Any]:
    """The tab. ``tab`` is where it is in: the first battle opens when a visitor goes there."""
    ui: dict[str, Any] = {
        # In the browser, so that a reload is the same voter; signed, so that it cannot be made up.
        "voter": gr.BrowserState("", storage_key="mmalign-voter", secret=ctx.arena.store.pseudonym("browser state")),
        "battle": gr.State(""),
        "order": gr.State([]),
    }
    forms = ctx.arena.sides.forms
    modes = [name for name, form in MODES.items() if form in forms]
    ui["mode"] = gr.Radio(
        modes, value=modes[0], show_label=False, container=False, visible=len(modes) > 1, elem_id="arena-mode"
    )
    ui["prompt"] = gr.HTML(markup.empty("A blind comparison", "Two sides, no names. Open the tab to begin."))
    _pair(ui, ctx.arena.sides.kind)
    _four(ui)
    with gr.Accordion("Say why (optional)", open=False, visible=False) as ui["why"]:
        ui["tags"] = gr.CheckboxGroup(list(TAGS), label="What decided", elem_id="tags")
        ui["reasons"] = gr.Textbox("", label="In your words", max_length=validation.LONGEST_PROMPT, lines=2)
    ui["skip"] = gr.Button("Skip this one", size="sm", visible=False, elem_id="skip-pair")
    ui["receipt"] = gr.HTML(elem_id="receipt")
    with gr.Row():
        ui["next"] = gr.Button("Next", variant="primary", visible=False, elem_id="next-pair")
        ui["download"] = gr.DownloadButton("Download this battle (.zip)", visible=False, elem_id="arena-download")
    gr.HTML(arena_markup.keys(forms))
    _wire(ctx, ui, tab)
    return ui


def _picture(elem_id: str, alt_text: str) -> gr.Image:
    how = {"format": "png", "type": "pil", "show_label": False, "buttons": ["fullscreen"], "interactive": False}
    return gr.Image(**how, elem_id=elem_id, elem_classes="picture", alt_text=alt_text)


def _pair(ui: dict[str, Any], kind: str) -> None:
    """Two pictures, or two answers below the picture that they are about; what is asked, and the buttons."""
    with gr.Column(visible=False) as ui["pair"]:
        if kind == "answers":
            ui["asked"] = asked_picture("arena-asked", alt_text="the picture that the question is about")
        with gr.Row(elem_classes=["pair", kind]):
            for name in PAIR_SLOTS:
                with gr.Column(min_width=150):
                    if kind == "answers":
                        ui[f"side_{name}"] = gr.HTML(elem_id=f"arena-{name}")
                    else:
                        ui[f"side_{name}"] = _picture(f"arena-{name}", f"the {name} picture")
                    ui[f"name_{name}"] = gr.HTML(elem_id=f"reveal-{name}")
                    ui[f"ok_{name}"] = gr.Radio(
                        OKS, value=None, label=f"Is the {name} one acceptable?", elem_id=f"{name}-ok", elem_classes="ok"
                    )
        with gr.Row(elem_classes="vote") as ui["buttons"]:
            ui["vote_left"] = gr.Button("← Left is better", elem_id="vote-left", min_width=100)
            ui["vote_tie"] = gr.Button("Tie", elem_id="vote-tie", min_width=70)
            ui["vote_right"] = gr.Button("Right is better →", elem_id="vote-right", min_width=100)


def _four(ui: dict[str, Any]) -> None:
    """Four pictures, a button to pick each, and the order so far."""
    with gr.Column(visible=False) as ui["four"]:
        with gr.Row(elem_classes="four"):
            for place in range(IN_A_RANKING):
                with gr.Column(min_width=140):
                    ui[f"side_{place}"] = _picture(f"arena-{place}", f"picture {place + 1}")
                    ui[f"pick_{place}"] = gr.Button(f"Pick ({place + 1})", elem_id=f"pick-{place}", size="sm")
                    ui[f"name_{place}"] = gr.HTML()
        ui["places"] = gr.HTML(elem_classes="places")
        with gr.Row() as ui["ranking_buttons"]:
            ui["undo"] = gr.Button("Undo", elem_id="undo-pick", min_width=80)
            ui["submit"] = gr.Button("Submit the order", variant="primary", interactive=False, elem_id="submit-order")


def next_battle(ctx: Context, token: Any, mode: Any, request: Any) -> tuple[str, Shown]:
    """(voter's pass, battle); a new pass where there is none, or it is of another server."""
    with explained():
        ctx.count(ctx.votes, request)
        form = MODES[validation.check_choice(mode, "mode", MODES)]
        try:
            ctx.arena.check_voter(token)
        except ValueError:
            token = ctx.arena.new_voter()
        return token, ctx.arena.next(token, form)


def cast(ctx: Context, token: Any, battle: Any, read: Any, values: tuple[Any, ...], request: Any) -> Revealed:
    """Count the visitor, check the ballot, keep the vote, reveal."""
    with explained():
        ctx.count(ctx.votes, request)
        battle = validation.check_token(battle, "battle")
        return ctx.arena.vote(token, battle, read(*values, ctx.arena.seconds_open(battle)))


def _wire(ctx: Context, ui: dict[str, Any], tab: gr.Tab) -> None:
    shows = [name for name in ui if name not in ("mode",)]
    outputs = [ui[name] for name in shows]
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}

    def filled(updates: dict[str, Any]) -> list[Any]:
        return [updates.get(name, gr.skip()) for name in shows]

    def on_next(token: Any, mode: Any, request: gr.Request) -> list[Any]:
        token, shown = next_battle(ctx, token, mode, request)
        return filled({"voter": token, **before(shown)})

    def on_first(token: Any, mode: Any, battle: Any, request: gr.Request) -> list[Any]:
        return filled({}) if battle else on_next(token, mode, request)

    def on_rank(token: Any, battle: Any, order: Any, tags: Any, reasons: Any, request: gr.Request) -> list[Any]:
        return filled(after(ctx, cast(ctx, token, battle, read_ranking, (order, tags, reasons), request)))

    def voting(better: str) -> Any:
        def on_choice(
            token: Any, battle: Any, left: Any, right: Any, tags: Any, reasons: Any, request: gr.Request
        ) -> list[Any]:
            values = (better, left, right, tags, reasons)
            return filled(after(ctx, cast(ctx, token, battle, read_ballot, values, request)))

        return on_choice

    tab.select(on_first, [ui["voter"], ui["mode"], ui["battle"]], outputs, **quiet)
    for name in ("next", "skip"):
        ui[name].click(on_next, [ui["voter"], ui["mode"]], outputs, **quiet)
    ui["mode"].change(on_next, [ui["voter"], ui["mode"]], outputs, **quiet)
    why = [ui["tags"], ui["reasons"]]
    for better in ("left", "tie", "right"):
        inputs = [ui["voter"], ui["battle"], ui["ok_left"], ui["ok_right"], *why]
        ui[f"vote_{better}"].click(voting(better), inputs, outputs, **quiet)
    picks = [ui["order"], ui["places"], ui["submit"], *(ui[f"pick_{place}"] for place in range(IN_A_RANKING))]
    for place in range(IN_A_RANKING):
        ui[f"pick_{place}"].click(partial(picked, place), ui["order"], picks, queue=False, **quiet)
    ui["undo"].click(partial(picked, None), ui["order"], picks, queue=False, **quiet)
    ui["submit"].click(on_rank, [ui["voter"], ui["battle"], ui["order"], *why], outputs, **quiet)


def before(shown: Shown) -> dict[str, Any]:
    """What the components show for a battle that is open: pictures or answers, and nothing on where they come from."""
    tiny = ["picture", "tiny"] if max(shown.images[0].size) < 256 else ["picture"]
    pair = shown.form == "pair"
    updates: dict[str, Any] = {
        "battle": shown.battle_id,
        "order": [],
        "prompt": arena_markup.prompt(shown.prompt, "answers" if shown.answers else shown.form),
        "pair": gr.update(visible=pair),
        "four": gr.update(visible=not pair),
        "buttons": gr.update(visible=pair),
        "ranking_buttons": gr.update(visible=not pair),
        "places": arena_markup.places([]),
        "submit": gr.update(interactive=False),
        "why": gr.update(visible=True),
        "tags": [],
        "reasons": "",
        "skip": gr.update(visible=True),
        "next": gr.update(visible=False),
        "download": gr.update(visible=False, value=None),
        "receipt": "",
    }
    slots: Any = PAIR_SLOTS if pair else range(IN_A_RANKING)
    if shown.answers:
        updates["asked"] = gr.update(value=shown.images[0], elem_classes=[*tiny, "asked"])
    for slot, side in zip(slots, shown.answers or shown.images, strict=True):
        updates[f"side_{slot}"] = (
            arena_markup.answer(side) if isinstance(side, str) else gr.update(value=side, elem_classes=tiny)
        )
        updates[f"name_{slot}"] = ""
        updates[f"ok_{slot}"] = gr.update(value=None, interactive=True)
        updates[f"pick_{slot}"] = gr.update(value=f"Pick ({slot + 1})" if not pair else "", interactive=True)
    return updates


def after(ctx: Context, revealed: Revealed) -> dict[str, Any]:
    """The reveal: names, what was counted, a download with provenance, and the way on."""
    pair = revealed.ballot.ranking is None
    file = new_file("battle.zip")
    file.write_bytes(archive([[picture] for picture in revealed.pictures]))
    updates: dict[str, Any] = {
        "buttons": gr.update(visible=False),
        "ranking_buttons": gr.update(visible=False),
        "why": gr.update(visible=False),
        "skip": gr.update(visible=False),
        "next": gr.update(visible=True),
        "download": gr.update(visible=True, value=str(file)),
        "receipt": arena_markup.receipt(revealed, ctx.arena.store.counts()["votes"]),
        "places": "",
    }
    slots: Any = PAIR_SLOTS if pair else range(IN_A_RANKING)
    for place, (slot, side) in enumerate(zip(slots, revealed.sides, strict=True)):
        updates[f"name_{slot}"] = arena_markup.revealed_name(side, revealed.ballot, place)
        updates[f"ok_{slot}"] = gr.update(interactive=False)
        updates[f"pick_{slot}"] = gr.update(interactive=False)
    return updates


def picked(place: int | None, order: list[int]) -> list[Any]:
    """The order with ``place`` at its end (None: without its last), and what the buttons then say."""
    order = order[:-1] if place is None else [*order, *([] if place in order else [place])]
    buttons = [
        gr.update(
            value=f"{order.index(slot) + 1}." if slot in order else f"Pick ({slot + 1})", interactive=slot not in order
        )
        for slot in range(IN_A_RANKING)
    ]
    return [order, arena_markup.places(order), gr.update(interactive=len(order) == IN_A_RANKING), *buttons]
