"""Writing an aligned vision-language model: a PEFT adapter or full weights, as plain transformers loads them."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from mmalign.models.card import Card
from mmalign.models.lora_weights import POLICY, LoRALayer, LoRAWeights
from mmalign.models.names import is_hub_id
from mmalign.models.vlm import VLMComponents

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def save_vlm(
    components: VLMComponents, folder: str | Path, card: Card | None = None, *, in_full: Sequence[str] = ()
) -> Path:
    """Write the trained model and its processor to ``folder``, safetensors only, and give the folder back.

    With adapters: what ``PeftModel.from_pretrained(base, folder)`` and ``base.load_adapter(folder)`` read, and
    ``AutoModelForImageTextToText.from_pretrained(folder)`` where the base model can still be found; ``in_full``:
    modules whose own weights were trained beside the adapters, which become PEFT's ``modules_to_save``. Without: all
    weights, in the precision they were trained in. The folder appears whole or not at all; an export that is already
    there is replaced, anything else is refused.
    """
    folder, model = Path(folder), components.model
    lora = getattr(model, "peft_config", {}).get(POLICY)
    with _replacing(folder) as partial:
        if lora is None:
            model.save_pretrained(partial, safe_serialization=True)
        else:
            config = lora.__class__.from_peft_type(**lora.to_dict())
            config.base_model_name_or_path = components.info.location
            config.inference_mode = True
            config.modules_to_save = list(in_full) or None
            config.save_pretrained(partial)
            state = get_peft_model_state_dict(model, adapter_name=POLICY)
            for module in in_full:
                state |= {f"{module}.{name}": value for name, value in model.get_submodule(module).state_dict().items()}
            tensors = {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
            save_file(tensors, partial / ADAPTER_FILE, {"format": "pt"})
        components.processor.save_pretrained(partial)
        (partial / "README.md").write_text(
            _card(components, folder, card or Card(), lora is not None), encoding="utf-8"
        )
    return folder


def read_vlm_adapter(folder: Path) -> LoRAWeights:
    """What :func:`save_vlm` wrote beside a base model: adapters, and modules that were trained in full."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {name.removeprefix(_PREFIX): value for name, value in load_file(folder / ADAPTER_FILE).items()}
    # rsLoRA's factor alpha / sqrt(rank) is that of a plain LoRA with alpha * sqrt(rank).
    alpha = settings["lora_alpha"] * (settings["r"] ** 0.5 if settings["use_rslora"] else 1.0)
    layers = {}
    for name in [name.removesuffix(_DOWN) for name in tensors if name.endswith(_DOWN)]:
        magnitude = tensors.pop(f"{name}.lora_magnitude_vector", None)
        layers[name] = LoRALayer(tensors.pop(name + _DOWN), tensors.pop(name + _UP), alpha, magnitude)
    return LoRAWeights(layers, tensors)


def _card(components: VLMComponents, folder: Path, card: Card, is_lora: bool) -> str:
    base, how = components.info.name, f" with {card.method}" if card.method else ""
    metadata = {
        **({"base_model": base} if is_hub_id(base) else {}),
        "base_model_relation": "adapter" if is_lora else "finetune",
        "library_name": "peft" if is_lora else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": [
            "preference-alignment",
            "mmalign",
            *(["lora"] if is_lora else []),
            *([card.method] if card.method else []),
        ],
    }
    place = components.info.location if is_lora else str(folder)
    lines = [
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f"model = AutoModelForImageTextToText.from_pretrained({place!r})",
        *([f"model.load_adapter({str(folder)!r})"] if is_lora else []),
        f"processor = AutoProcessor.from_pretrained({str(folder)!r})",
    ]
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {Path(base).name}, aligned{how}",
        f"{'LoRA weights' if is_lora else 'Full weights'} of `{base}`, aligned with human preference{how}.",
        "## Use\n\n```python\n" + "\n".join(lines) + "\n```",
    ]
    if card.objective:
        terms = yaml.safe_dump([dict(term) for term in card.objective], sort_keys=False)
        parts.append(f"## Training\n\n```yaml\nobjective:\n{terms}```")
    for name, rows in (("setting", card.settings), ("measure", card.results)):
        if rows:
            table = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items())
            parts.append(f"| {name} | value |\n|---|---|\n{table}")
    if card.data:
        parts.append(f"## Data\n\n{card.data}")
    return "\n\n".join([*parts, "Made with mmalign. The licence of the base model applies."]) + "\n"


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` when the block ends well and vanishes when it does not."""
    known = ("config.json", "adapter_config.json")
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not any((folder / f).is_file() for f in known))
    ):
        raise ValueError(f"{folder} exists and is not an exported model; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
