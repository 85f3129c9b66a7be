"""A CLIP in a folder, as transformers saves it and as ``mmalign train`` writes it: where it is, how it reads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import CLIPConfig

from mmalign.models.names import PLAYGROUND, is_hub_id
from reward_models.clip_towers import FILES
from reward_models.pixels import Preprocess
from reward_models.tokens import END, ClipTokens, FolderTokens
from reward_models.weights import Source, locate

SETTINGS = "reward.json"
HEAD = "head.safetensors"
TOKENIZER = ("tokenizer.json", "vocab.json")
COPIED = (*TOKENIZER, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")
CLIP_VOCABULARY = 49408


@dataclass(frozen=True)
class ClipFolder:
    """``config_file`` and ``weights``. ``fit``: how pictures are made square, of ``reward.json`` where there is one."""

    name: str
    config_file: Path
    weights: Path

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.config_file.parent

    @cached_property
    def config(self) -> CLIPConfig:
        """What ``config.json`` says; ValueError where it is no CLIP, or one whose words nobody here knows."""
        told: Any = json.loads(self.config_file.read_text(encoding="utf-8"))
        if told.get("model_type") != "clip":
            raise ValueError(
                f"{self.config_file} describes a {told.get('model_type')}, and a reward is trained on a clip of "
                "transformers: text and vision tower, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
            )
        config: Any = CLIPConfig.from_dict(told)
        words = config.text_config.vocab_size
        if words != CLIP_VOCABULARY and not self._has_tokenizer:
            raise ValueError(
                f"{self.folder} has no {' or '.join(TOKENIZER)}, and its {words} tokens are not CLIP's "
                f"{CLIP_VOCABULARY}; put the files of its tokenizer there"
            )
        return config

    @property
    def settings(self) -> Mapping[str, Any]:
        """What ``mmalign train`` wrote into ``reward.json``; empty for a plain CLIP."""
        file = self.folder / SETTINGS
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def tokens(self) -> ClipTokens | FolderTokens:
        """The tokenizer beside the weights, or CLIP's own as transformers cleans and pads."""
        if self._has_tokenizer:
            config: Any = self.config.text_config
            return FolderTokens(self.folder, config.max_position_embeddings)
        return ClipTokens(cleaning="transformers", pad=END)

    def preprocess(self, fit: str) -> Preprocess:
        """CLIP's preprocessing at the size of the vision tower."""
        config: Any = self.config.vision_config
        return Preprocess(config.image_size, fit=fit, corner="transformers")  # type: ignore[arg-type]

    @property
    def _has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in TOKENIZER)


def find_clip(name: str, *, reward: str = "clip-reward") -> ClipFolder:
    """The CLIP called ``name``: ``playground/tiny-clip``, a folder, a run's folder, or a hub id.

    ValueError that says where was looked and how to get what is missing.
    """
    source = Source(name, FILES, "that of the model")
    if name.startswith("playground/"):
        folder = PLAYGROUND / name.removeprefix("playground/")
        if not (folder / FILES[0]).is_file():
            raise ValueError(f"there is no CLIP {name!r}; the playground has playground/tiny-clip")
        return ClipFolder(name, *locate(source, reward, folder))
    folder = Path(name).expanduser()
    for place in (folder, folder / "aligned"):
        if (place / FILES[0]).is_file():
            return ClipFolder(name, *locate(source, reward, place))
    if folder.exists() or not is_hub_id(name):
        raise ValueError(f"{name!r} is no CLIP: give a folder with {' and '.join(FILES)}, a hub id, or playground/NAME")
    return ClipFolder(name, *locate(source, reward))
