"""Vision encoders in a folder, of transformers or open_clip, as functions from pictures to one vector each."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmalign.models.names import PLAYGROUND

OPEN_CLIP = "open_clip_config.json"


class VisionEncoder(Protocol):
    """``name`` and ``fingerprint``: what the vectors depend on beside the pictures."""

    name: str
    fingerprint: str

    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        """One vector per picture, float32, on the CPU, not normalised."""
        ...


def vision_encoder(folder: str | Path, *, device: str = "cpu") -> VisionEncoder:
    """The encoder in ``folder``: a CLIP, SigLIP, DINOv2 or ViT of transformers, or a model of open_clip.

    ``playground/tiny-clip`` is the shipped one. ValueError for a folder that holds neither, or whose weights are no
    safetensors.
    """
    path = encoder_folder(folder)
    if (path / OPEN_CLIP).is_file():
        return _OpenClip(path, device)
    if (path / "config.json").is_file():
        return _Transformers(path, device)
    raise ValueError(
        f"encoder={str(folder)!r} is no folder of a vision encoder: no config.json and no {OPEN_CLIP} in it"
    )


def encoder_folder(name: str | Path) -> Path:
    """The folder that ``name`` means: itself, or that of a model of the playground."""
    text = str(name)
    return PLAYGROUND / text.removeprefix("playground/") if text.startswith("playground/") else Path(name).expanduser()


class _Transformers:
    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.name, self.fingerprint, self.device = folder.name, files_fingerprint(folder), device
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        self.processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model = model.to(device).eval().requires_grad_(False)
        takes = inspect.signature(self.model.forward).parameters
        if not hasattr(self.model, "get_image_features") and "input_ids" in takes:
            raise ValueError(f"{folder} is a {kind}, which gives no features of pictures alone")

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        given = self.processor(images=list(images), return_tensors="pt").to(self.device)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(**given)
        else:
            found = self.model(**given)
        return _pooled(found).float().cpu()


class _OpenClip:
    def __init__(self, folder: Path, device: str) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(
                f"{folder} needs open_clip, which is not installed: pip install mmalign[rewards]"
            ) from error
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{folder} has no weights as safetensors; nothing else is read")
        self.name, self.fingerprint, self.device = folder.name, files_fingerprint(folder), device
        made: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder.resolve()}", device=device)
        model, self.preprocess = made
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        return self.model.encode_image(pixels).float().cpu()


class TowerOf:
    """The vision encoder of a vision-language model: the mean over a picture's features, projector included.

    ``media_of`` gives the processor's tensors of one picture, by the names that ``get_image_features`` takes.
    """

    def __init__(self, model: Any, media_of: Any, fingerprint: str) -> None:
        self.model, self.media_of = model, media_of
        self.name, self.fingerprint = f"the vision encoder of {type(model).__name__}", fingerprint

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        """One picture at a time: their sizes differ in some families."""
        rows = []
        for image in images:
            given = {name: value.to(self.model.device) for name, value in self.media_of(image).items()}
            found = self.model.model.get_image_features(**given, return_dict=True).pooler_output
            parts = found if isinstance(found, Tensor) else torch.cat(list(found))
            rows.append(parts.reshape(-1, parts.shape[-1]).float().mean(0).cpu())
        return torch.stack(rows)


def files_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and bytes of weights and settings in ``folder``."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json")):
        with file.open("rb") as opened:
            digest.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _pooled(found: Any) -> Tensor:
    """One vector per picture: the pooled output, or the mean over patches of a model that pools nothing."""
    if isinstance(found, Tensor):
        return found
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state.mean(1) if pooled is None else pooled.reshape(len(pooled), -1)
