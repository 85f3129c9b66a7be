"""Folders of generated pictures: PNG files and ``manifest.jsonl``, one line per picture with what made it.

    OUT/manifest.jsonl   {"file": "base/0000_seed0.png", "model": "base", "prompt": "...", "seed": 0, "steps": 30, ...}
    OUT/base/*.png  OUT/aligned/*.png  OUT/grid.png

A manifest describes the files below its folder, so OUT can be moved; OUT/base alone finds the manifest above it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.jsonl"


def require_empty(out: Path) -> None:
    """``ValueError`` where pictures written to ``out`` would mix with files that are there already."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"--out {out} is not empty; name a new folder, so that nothing is overwritten or mixed")


def write_pictures(
    out: Path,
    pictures: Mapping[str, Sequence["Image"]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
) -> None:
    """Write ``pictures`` (model -> one per prompt and seed, zipped) and the manifest; ``settings`` go on every line."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    lines = []
    for model, images in pictures.items():
        (out / model).mkdir(parents=True, exist_ok=True)
        for image, prompt, seed in zip(images, prompts, seeds, strict=True):
            file = f"{model}/{numbers[prompt]:04d}_seed{seed}.png"
            image.save(out / file)
            lines.append(json.dumps({"file": file, "model": model, "prompt": prompt, "seed": seed, **settings}))
    (out / MANIFEST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_pictures(folder: Path) -> dict[tuple[str, int], Path]:
    """(prompt, seed) -> file, for the pictures in ``folder`` that its manifest, or the one above it, names."""
    manifests = [path for path in (folder / MANIFEST, folder.parent / MANIFEST) if path.is_file()]
    if not manifests:
        raise ValueError(f"{folder} has no {MANIFEST}; give a folder made by mmalign generate, such as OUT/base")
    found: dict[tuple[str, int], Path] = {}
    for number, line in enumerate(manifests[0].read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            key, file = (row["prompt"], row["seed"]), manifests[0].parent / row["file"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{manifests[0]}, line {number}: needs file, prompt and seed, got {line!r}") from None
        if not file.is_relative_to(folder):
            continue
        if key in found:
            raise ValueError(f"{folder} holds two pictures of seed {key[1]}, {key[0]!r}; give OUT/base or OUT/aligned")
        if not file.is_file():
            raise ValueError(f"{manifests[0]}, line {number}: {file} is missing")
        found[key] = file
    if not found:
        raise ValueError(f"{manifests[0]} names no picture in {folder}; give a folder made by mmalign generate")
    return found
