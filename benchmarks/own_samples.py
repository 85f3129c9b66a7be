"""A playground model's own pictures, sampled once per seed and kept."""

from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from mmalign.models import load_aligned
from mmalign.playground.on_policy import PairSettings, sample_groups
from mmalign.quickstart import BATCH, progress_bar

Groups = list[tuple[str, list[Image.Image]]]


def samples(settings: PairSettings, folder: Path, console: Console) -> Groups:
    """The model's own pictures, prompt by prompt; sampled once per seed."""
    path = folder / "samples.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            pictures, prompts = stored["pictures"], stored["prompts"].tolist()
        return [(p, [Image.fromarray(picture) for picture in of]) for p, of in zip(prompts, pictures, strict=True)]
    with progress_bar(console) as bar:
        task = bar.add_task("sampling", total=settings.pictures)
        pipe = load_aligned(settings.model)
        groups = sample_groups(pipe, settings, lambda done: bar.advance(task, done), batch_size=BATCH)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "samples.partial.npz"
    pictures = np.stack([np.stack([np.asarray(image) for image in images]) for _, images in groups])
    np.savez(partial, pictures=pictures, prompts=np.array([prompt for prompt, _ in groups]))
    partial.replace(path)
    return groups
