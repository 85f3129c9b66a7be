"""The two towers of a CLIP, from transformers or open_clip, with one face: token ids and pixels in, features out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from reward_models.pixels import Preprocess
from reward_models.weights import build, fill, find_device, read_state

FILES = ("config.json", "model.safetensors|pytorch_model.bin")


class ClipTowers:
    """Text and image features of a CLIP, float32, not normalised. ``identity`` names weights, precision and device."""

    def __init__(self, model: nn.Module, identity: str, device: torch.device, dtype: torch.dtype, size: int) -> None:
        self.model, self.identity, self.device, self.dtype, self.size = model, identity, device, dtype, size

    def text_features(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch width"]:
        """The projected state of the end of text."""
        ids = ids.to(self.device)
        if isinstance(self.model, CLIPModel):
            return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output).float()
        return cast(Any, self.model).encode_text(ids).float()

    def image_features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch width"]:
        """The projected state of the class token."""
        pixels = pixels.to(self.device, self.dtype)
        if isinstance(self.model, CLIPModel):
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output).float()
        return cast(Any, self.model).encode_image(pixels).float()

    def embed(
        self, images: Sequence[Image.Image], preprocess: Preprocess, batch_size: int
    ) -> Float[Tensor, "batch width"]:
        """Image features of pictures, ``batch_size`` at a time, without gradients."""
        chunks = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        with torch.no_grad():
            features = [self.image_features(preprocess.pictures(chunk)) for chunk in chunks]
        return torch.cat(features) if features else torch.zeros(0, 1, device=self.device)

    def embed_tensor(
        self, images: Float[Tensor, "batch 3 height width"], preprocess: Preprocess
    ) -> Float[Tensor, "batch width"]:
        """Image features of pictures with values in 0..1; gradients reach the pixels."""
        return self.image_features(preprocess.tensor(images.to(self.device)))

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale): what a cosine is multiplied with for logits."""
        return cast(Tensor, self.model.logit_scale).float().exp()


# A second reward on the same files gets the same module: ViT-H is 4 GB.
_LOADED: WeakValueDictionary[str, ClipTowers] = WeakValueDictionary()


def transformers_towers(
    files: list[Path], *, device: str | None, dtype: str, state: Mapping[str, Tensor] | None = None
) -> ClipTowers:
    """Towers of a transformers CLIP: ``config.json`` and weights; ``state`` instead of the weights file's tensors."""
    config = CLIPConfig.from_json_file(files[0])
    size = cast(Any, config).vision_config.image_size

    def tensors() -> Mapping[str, Tensor]:
        return read_state(files[-1]) if state is None else state

    return _towers(files[-1], lambda: CLIPModel(config), tensors, size, device, dtype)


def open_clip_towers(
    file: Path, architecture: Mapping[str, Any], *, device: str | None, dtype: str, convert: str | None = None
) -> ClipTowers:
    """Towers of an open_clip checkpoint of ``architecture`` (the arguments of ``open_clip.model.CLIP``)."""
    from open_clip.model import CLIP

    def tensors() -> Mapping[str, Tensor]:
        return read_state(file, convert=convert)

    size = architecture["vision_cfg"]["image_size"]
    return _towers(file, lambda: CLIP(**architecture), tensors, size, device, dtype)


def _towers(
    file: Path,
    make: Callable[[], nn.Module],
    tensors: Callable[[], Mapping[str, Tensor]],
    size: int,
    device: str | None,
    dtype: str,
) -> ClipTowers:
    place, status = find_device(device), file.stat()
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {dtype} {place}"
    towers = _LOADED.get(identity)
    if towers is None:
        model = build(make)
        fill(model, tensors(), str(file), dtype=dtype, device=place)
        towers = ClipTowers(model, identity, place, next(model.parameters()).dtype, size)
        _LOADED[identity] = towers
    return towers
