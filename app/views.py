"""A comparison as what each component of the page shows: side by side, slider, difference, flicker, and the seeds."""

from pathlib import Path
from typing import Any

import gradio as gr

from app import markup, validation
from app.compare import Comparison, difference

SIDE, SLIDER, DIFFERENCE, FLICKER = validation.VIEWS
PARTS = (
    "message",
    "left",
    "right",
    "caption_a",
    "caption_b",
    "slider",
    "difference",
    "flicker",
    "summary",
    "grid",
    "download",
)


def present(comparison: Comparison, index: int, view: str, download: Path | None = None) -> dict[str, Any]:
    """What each component shows for seed ``index``; views that are not looked at are sent no picture."""
    if not 0 <= index < len(comparison.left):
        raise ValueError(f"there is no seed number {index}; choose one of {len(comparison.left)}")
    left, right = comparison.left[index], comparison.right[index]
    several = len(comparison.left) > 1
    css = ["picture", "tiny"] if max(left.image.size) < 256 else ["picture"]
    side, same_size = view == SIDE, left.image.size == right.image.size
    problem = ""
    if view in (SLIDER, DIFFERENCE) and not same_size:
        problem = markup.problem("The pictures differ in size; look at them side by side, or in turn.")
    first, second = (f"{picture.model}: {picture.prompt}" for picture in (left, right))
    return {
        "message": gr.update(value=problem, visible=bool(problem)),
        "left": gr.update(value=left.image if side else None, visible=side, elem_classes=css, alt_text=first),
        "right": gr.update(value=right.image if side else None, visible=side, elem_classes=css, alt_text=second),
        "caption_a": markup.caption(comparison, index, "a"),
        "caption_b": markup.caption(comparison, index, "b"),
        "slider": gr.update(
            value=(left.image, right.image) if view == SLIDER and same_size else None,
            visible=view == SLIDER and same_size,
            elem_classes=css,
        ),
        "difference": gr.update(
            value=difference(left.image, right.image) if view == DIFFERENCE and same_size else None,
            visible=view == DIFFERENCE and same_size,
            elem_classes=css,
            alt_text="Four times the difference of the two pictures",
        ),
        "flicker": gr.update(value=markup.flicker(left, right) if view == FLICKER else "", visible=view == FLICKER),
        "summary": markup.summary(comparison, index),
        "grid": gr.update(value=_thumbnails(comparison), visible=several, elem_classes=["seeds", *css[1:]]),
        "download": gr.skip() if download is None else gr.update(value=str(download), visible=True),
    }


def _thumbnails(comparison: Comparison) -> list[tuple[Any, str]]:
    if len(comparison.left) < 2:
        return []
    both = zip(comparison.left, comparison.right, strict=True)
    return [(picture.image, f"{picture.model} · seed {picture.seed}") for pair in both for picture in pair]
