"""The folder of a pretrained ``tiny-llava``: weights in fp16, processor, what it can do, and a card."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from mmalign.playground.looking import looks
from mmalign.playground.pretrain.llava import LlavaSettings
from mmalign.playground.tiny_llava import build_processor

CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# tiny-llava

The LLaVA-1.5 architecture at playground size ({parameters:.1f} M weights), trained from scratch by

    {command}

on rendered pictures of coloured shapes. It describes them and answers questions about them, and it has a prior: in its
training pictures one attribute foretells another with probability {follow}. On pictures without such habits it says
what usually is where it should say what it sees, as large models do: it is made to be aligned.

Measured on {pictures} pictures each, those without habits of combinations that training never saw; the measures are
those of `mmalign.evaluation.vlm_playground`:

| measure | pictures that follow the habits | pictures without habits |
|---|---|---|
{table}

Load it as `playground/tiny-llava`, or this folder with `LlavaForConditionalGeneration.from_pretrained`.
It knows {words} words and nothing about the real world.
"""


def write_llava(folder: Path, model: Any, settings: LlavaSettings, record: dict[str, object]) -> dict[str, object]:
    """Save, load again, measure what was saved, and write ``pretrain.json`` and the card."""
    from transformers import LlavaForConditionalGeneration

    processor = build_processor()
    device = model.device
    model.to(device="cpu", dtype=torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    saved = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).to(device)
    quality = measure_llava(saved, processor, settings)
    command = command_of(settings)
    record = {"command": command, "settings": asdict(settings), **record, "quality": quality}
    (folder / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    rows = [
        f"| {name} | {value:.3f} | {quality['without_habits'][name]:.3f} |"
        for name, value in quality["with_habits"].items()
    ]
    text = CARD.format(
        parameters=sum(parameter.numel() for parameter in saved.parameters()) / 1e6,
        command=command,
        follow=settings.follow,
        pictures=settings.judged_pictures,
        table="\n".join(rows),
        words=len(processor.tokenizer),  # type: ignore[attr-defined]
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return record


def measure_llava(model: Any, processor: Any, settings: LlavaSettings) -> dict[str, dict[str, float]]:
    """Every measure on pictures that follow all habits, and on held-out ones without habits."""
    from mmalign.evaluation.vlm_playground import measure

    quality = {}
    # Where every habit holds there are too few combinations to hold some out.
    for name, follow, held_out in (("with_habits", 1.0, None), ("without_habits", 0.0, True)):
        pictures = looks(settings.judged_pictures, settings.seed, follow=follow, held_out=held_out)
        seen = measure(model, processor, pictures)
        quality[name] = {measured: round(value, 4) for measured, value in seen.values().items()}
    return quality


def command_of(settings: LlavaSettings) -> str:
    """The command line that trains with these settings."""
    changed = [
        f" --{field.name.replace('_', '-')} {getattr(settings, field.name)}"
        for field in fields(settings)
        if getattr(settings, field.name) != field.default
    ]
    return f"python -m mmalign.playground.pretrain --model tiny-llava --out FOLDER{''.join(changed)}"
