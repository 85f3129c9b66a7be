"""A tiny CLIP that reads the playground's words, pairs whose better picture is told by its colour, and overrides."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from mmalign.data import table_of, write_canonical
from mmalign.playground.pairs import make_pairs as pairs_of
from mmalign.playground.pairs import write_pickapic
from mmalign.playground.rankings import make_rankings
from mmalign.playground.tastes import make_user_pairs
from mmalign.playground.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, build_tokenizer
from mmalign.types import ImageBytes, PreferencePair
from tests.data.making_data import png
from tests.rewards.tiny_checkpoints import spread

SIDE = 16
# Recipe of a head, or of rankings -> source and file of tiny rows for it.
HEAD_RECIPES = {
    "playground/reward_gaussian": ("pickapic", "pairs.parquet"),
    "playground/reward_gpm": ("pickapic", "pairs.parquet"),
    "playground/reward_listwise": ("canonical", "rankings.parquet"),
    "playground/reward_multi": ("canonical", "dimensions.parquet"),
    "playground/reward_pal": ("pickapic", "users.parquet"),
    "rewards/hpsv3": ("pickapic", "pairs.parquet"),
}


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Two layers, 16 wide, pictures of 16 px, with the playground's tokenizer."""
    tokenizer = build_tokenizer()
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_LENGTH}
    ends = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    vision = {**layers, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=layers | words | ends, vision_config=vision, projection_dim=8))
    spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def less_red(prompts: list[str], images: list[Image.Image]) -> list[float]:
    return [-float(np.asarray(image, np.float32)[..., 0].mean()) for image in images]


def save_pairs(file: Path, rows: int = 24) -> Path:
    """Plain pictures of random colours; the less red one wins."""
    rng = np.random.default_rng(0)
    groups = [(f"a red circle {'and a star ' * (row % 3)}", [_plain(rng), _plain(rng)]) for row in range(rows)]
    write_pickapic(pairs_of(groups, less_red, min_gap=30.0), file)
    return file


def more_red(prompts: list[str], images: list[Image.Image]) -> list[float]:
    return [-value for value in less_red(prompts, images)]


def save_users(file: Path, prompts: int = 10) -> Path:
    """Four users: 0 and 2 like less red pictures, 1 and 3 redder ones."""
    rng = np.random.default_rng(0)
    groups = [(f"a red circle {'and a star ' * row}", [_plain(rng), _plain(rng)]) for row in range(prompts)]
    write_pickapic(make_user_pairs(groups, tastes={"less": less_red, "more": more_red}, users_per_taste=2), file)
    return file


def save_rankings(file: Path, prompts: int = 14) -> Path:
    rng = np.random.default_rng(0)
    groups = [(f"a red circle {'and a star ' * row}", [_plain(rng) for _ in range(3)]) for row in range(prompts)]
    write_canonical(table_of(make_rankings(groups, less_red)), file)
    return file


def save_dimensions(file: Path, rows: int = 16) -> Path:
    """Colour was judged in every row, shape in every other one, background only in the fourth."""
    pairs = []
    for row in range(rows):
        labels = {"colour": 1.0} | ({"shape": 0.25} if row % 2 else {}) | ({"background": 0.0} if row == 3 else {})
        sides = [ImageBytes(f"row {row}", data=png(seed=2 * row + side)) for side in (0, 1)]
        pairs.append(PreferencePair(f"{row}", f"a star {'and a heart ' * row}", *sides, extras=labels))
    write_canonical(table_of(pairs), file)
    return file


def _plain(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (20, 24), tuple(int(value) for value in rng.integers(0, 256, 3)))


def overrides(folder: Path, **changes: object) -> list[str]:
    """A recipe's changes for the tiny CLIP of ``folder / "clip"`` and the pairs of ``folder / "pairs.parquet"``."""
    settings: dict[str, object] = {
        "model.name": folder / "clip",
        "data.path": folder / "pairs.parquet",
        "data.source": "pickapic",
        "data.as": "native",
        "data.held_out": 0.3,
        "training.steps": 2,
        "training.batch_size": 4,
        "training.accumulation": 1,
        "training.warmup_steps": 0,
        "training.workers": 0,
        "training.mixed_precision": "no",
        "training.checkpoint_every": 2,
        "evaluation.every": 1,
        "output": folder / "run",
    }
    return [f"{key}={value}" for key, value in (settings | changes).items()]
