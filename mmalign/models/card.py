"""The README.md of an aligned model: what it is, how to load it, how it was made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmalign.models.names import is_hub_id


@dataclass(frozen=True)
class Card:
    """What a model card tells beside the load snippet; everything is optional.

    ``method``: its short name (``dpo``), which becomes a tag. ``objective``: the terms as in the recipe. ``settings``:
    name -> value of the hyper-parameters. ``data``: one sentence. ``results``: measure -> value, only if measured.
    """

    method: str | None = None
    objective: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)


def card_text(
    card: Card, *, folder: Path, base_name: str, pipeline_class: str, lora_scale: float | None, absent: Sequence[str]
) -> str:
    """Markdown with YAML metadata.

    ``folder``: where the snippet reads the model from. ``lora_scale``: alpha / rank of adapters, None for full weights.
    The licence is left out: the base model's licence decides it.
    """
    sections = [
        _metadata(card, base_name, is_lora=lora_scale is not None),
        _title(card, base_name, is_lora=lora_scale is not None),
        "## Use\n\n" + _snippet(folder, base_name, pipeline_class, is_lora=lora_scale is not None, absent=absent),
    ]
    if lora_scale not in (None, 1.0):
        sections.append(
            f"Tools that do not read adapter metadata (diffusers before 0.34, some interfaces) must apply the adapter "
            f"at weight {lora_scale:g} (alpha / rank)."
        )
    if card.objective or card.settings:
        sections.append("## Training\n\n" + _training(card))
    if card.data:
        sections.append("## Data\n\n" + card.data)
    if card.results:
        sections.append("## Results\n\n" + _table("measure", card.results))
    sections.append("Made with mmalign. The licence of the base model applies.")
    return "\n\n".join(sections) + "\n"


def _metadata(card: Card, base_name: str, *, is_lora: bool) -> str:
    tags = ["text-to-image", "preference-alignment", "mmalign", *(["lora"] if is_lora else [])]
    if card.method:
        tags.append(card.method)
    # The hub understands only its own ids here, not folders or playground models.
    known = {"base_model": base_name} if is_hub_id(base_name) else {}
    metadata = {
        **known,
        "base_model_relation": "adapter" if is_lora else "finetune",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _title(card: Card, base_name: str, *, is_lora: bool) -> str:
    what = "LoRA weights" if is_lora else "Full weights"
    how = f" with {card.method}" if card.method else ""
    name = base_name if is_hub_id(base_name) else Path(base_name).name
    return f"# {name}, aligned{how}\n\n{what} of `{name}`, aligned with human preference{how}."


def _snippet(folder: Path, base_name: str, pipeline_class: str, *, is_lora: bool, absent: Sequence[str]) -> str:
    without = "".join(f", {name}=None" for name in absent)
    lines = [f"from diffusers import {pipeline_class}", ""]
    source = json.dumps(base_name if is_lora else str(folder))
    if is_lora and base_name.startswith("playground/"):
        lines.insert(1, "from mmalign.models import resolve_model")
        source = f"resolve_model({source})"
    lines.append(f"pipe = {pipeline_class}.from_pretrained({source}{without})")
    if is_lora:
        lines.append(f"pipe.load_lora_weights({json.dumps(str(folder))})")
    lines.append('image = pipe("a prompt").images[0]')
    return "```python\n" + "\n".join(lines) + "\n```"


def _training(card: Card) -> str:
    parts = []
    if card.objective:
        terms = yaml.safe_dump([dict(term) for term in card.objective], sort_keys=False)
        parts.append(f"```yaml\nobjective:\n{terms}```")
    if card.settings:
        parts.append(_table("setting", card.settings))
    return "\n\n".join(parts)


def _table(head: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {head} | value |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items())])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
