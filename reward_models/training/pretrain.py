"""Train the playground's CLIP from scratch: ``python -m reward_models.training.pretrain --out FOLDER``.

``tiny-clip``: a transformers CLIPModel on rendered pictures and their captions, with open_clip's own contrastive loss.
It starts from tiny-llava's vision tower and one of tiny-sdxl's text encoders, which saves most of the time. Interrupted
runs continue with the same command. Ends by writing the model's folder in fp16, with its tokenizer, and how good it is
on held-out captions. Every field of :class:`ClipSettings` is an option.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModelForImageTextToText, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel

from mmalign.models.names import PLAYGROUND
from mmalign.playground.captions import parse
from mmalign.playground.pretrain.frame import Plan, Progress, train
from mmalign.playground.pretrain.pictures import render_dataset
from mmalign.playground.renderer import render
from mmalign.playground.scene import Scene, arrange, held_out_prompts, sample_scene
from mmalign.playground.tiny_sdxl import IMAGE_SIZE
from mmalign.playground.tokenizer import MAX_LENGTH, build_tokenizer
from reward_models.pixels import CLIP_MEAN, CLIP_STD, Preprocess

WIDTH = 64


@dataclass(frozen=True)
class ClipSettings:
    """Sizes of the run. The shipped weights say theirs in ``pretrain.json``."""

    images: int = 8000
    steps: int = 700
    batch: int = 96
    learning_rate: float = 1e-3
    ema_decay: float = 0.98
    judged: int = 200
    seed: int = 0


def build_tiny_clip() -> CLIPModel:
    """0.9 M weights, random but for those of tiny-llava's vision tower and tiny-sdxl's first text encoder."""
    tower = AutoModelForImageTextToText.from_pretrained(PLAYGROUND / "tiny-llava", dtype=torch.float32)
    tower = tower.model.vision_tower
    encoder = CLIPTextModel.from_pretrained(PLAYGROUND / "tiny-sdxl" / "text_encoder", dtype=torch.float32)
    text, vision = encoder.config.to_dict(), tower.config.to_dict()
    for part in (text, vision):
        part.pop("_name_or_path", None)  # where it was on this machine
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    model = CLIPModel(config)
    _take_over(model.vision_model, tower)
    _take_over(model.text_model, encoder)
    return model


def _take_over(part: nn.Module, trained: nn.Module) -> None:
    """Load ``trained`` into ``part``; some classes keep the same tensors one level deeper."""
    state = {
        name.removeprefix("vision_model.").removeprefix("text_model."): value
        for name, value in trained.state_dict().items()
    }
    part.load_state_dict(state)


def pretrain(folder: Path, settings: ClipSettings) -> dict[str, Any]:
    """Train, write ``folder`` and give what ``pretrain.json`` says."""
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / "progress.pt", every=100)
    pictures, captions = render_dataset(settings.images, settings.seed)
    model = build_tiny_clip()
    train_contrastive(model, pictures, captions, settings, progress)
    seconds = time.perf_counter() - started
    model.eval()
    record = {"settings": asdict(settings), "seconds": round(seconds), "quality": measure(model, settings.judged)}
    write_clip(folder, model)
    (folder / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    progress.path.unlink(missing_ok=True)
    return record


def train_contrastive(
    model: CLIPModel,
    pictures: UInt8[Tensor, "rows 3 side side"],
    captions: Sequence[str],
    settings: ClipSettings,
    progress: Progress,
) -> None:
    """(CE of pictures over the batch's texts + CE of texts over its pictures) / 2, logits = exp(logit_scale) cos.

    ``logit_scale`` stays at or below ln 100. ``model`` ends with its averaged weights.
    """
    from open_clip.loss import ClipLoss

    contrast, tokens, preprocess = ClipLoss(), token_ids(captions), Preprocess(IMAGE_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)

    def loss_of_step(step: int) -> Tensor:
        draws = torch.Generator().manual_seed(settings.seed * 7919 + step)
        rows = torch.randperm(len(captions), generator=draws)[: settings.batch]
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        image, text = features(model, preprocess.normalise(pictures[rows].float() / 255), tokens[rows])
        return contrast(image, text, model.logit_scale.exp())

    plan = Plan("contrastive", settings.steps, settings.learning_rate, settings.ema_decay)
    train(plan, model, optimizer, loss_of_step, progress)


def features(model: CLIPModel, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features of pictures and of texts."""
    image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    return normalize(image, dim=-1), normalize(text, dim=-1)


def token_ids(captions: Sequence[str]) -> Tensor:
    """[captions, MAX_LENGTH] ids of the grammar's words."""
    tokenizer: Any = build_tokenizer()
    length = {"padding": "max_length", "max_length": MAX_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(captions), **length).input_ids


@torch.no_grad()
def measure(model: CLIPModel, prompts: int) -> dict[str, float]:
    """On held-out captions: ``top_1`` finds a picture's caption among 100, and for each attribute how often the right
    picture scores above one in which this attribute alone is another (chance: one half)."""
    rng = np.random.default_rng(1)
    texts = held_out_prompts("single", prompts, 1)
    scenes = [arrange(parse(text), rng) for text in texts]
    right = _scores(model, texts, scenes)
    chunk = 100
    image, text = (_embed(model, texts, scenes)[side].split(chunk) for side in (0, 1))
    found = [(a @ b.T).argmax(dim=1) == torch.arange(len(a)) for a, b in zip(image, text, strict=True)]
    results = {"top_1": torch.cat(found).float().mean().item()}
    for attribute in ("shape", "colour", "size", "style", "background"):
        others = [_with_another(scene, attribute, rng) for scene in scenes]
        results[attribute] = (right > _scores(model, texts, others)).float().mean().item()
    return {name: round(value, 4) for name, value in results.items()}


def _with_another(scene: Scene, attribute: str, rng: np.random.Generator) -> Scene:
    """``scene`` with one attribute drawn anew, as an arranged scene."""
    while True:
        drawn = sample_scene(rng, "single", held_out=None)
        if attribute == "background":
            other = replace(scene, background=drawn.background)
        elif attribute == "style":
            other = replace(scene, style=drawn.style)
        else:
            thing = replace(scene.things[0], **{attribute: getattr(drawn.things[0], attribute)})
            other = replace(scene, things=(thing,))
        if other.attributes != scene.attributes:
            return arrange(other, rng)


def _scores(model: CLIPModel, texts: Sequence[str], scenes: Sequence[Scene]) -> Tensor:
    image, text = _embed(model, texts, scenes)
    return (image * text).sum(dim=-1)


def _embed(model: CLIPModel, texts: Sequence[str], scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    pictures = torch.from_numpy(np.stack([render(scene, IMAGE_SIZE) for scene in scenes])).permute(0, 3, 1, 2)
    return features(model, Preprocess(IMAGE_SIZE).normalise(pictures.float() / 255), token_ids(texts))


def write_clip(folder: Path, model: nn.Module) -> None:
    """``save_pretrained`` of model (fp16), tokenizer and processor."""
    assert isinstance(model, CLIPModel)
    model.half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    size = {"shortest_edge": IMAGE_SIZE}
    crop = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessor(size=size, crop_size=crop, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    processor.save_pretrained(folder)


def main() -> None:
    """Read the settings and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name, default in asdict(ClipSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    values = vars(parser.parse_args())
    print(json.dumps(pretrain(values.pop("out"), ClipSettings(**values)), indent=1))


if __name__ == "__main__":
    main()
