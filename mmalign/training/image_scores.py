"""What the kept reference scores of an image generator depend on."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from mmalign.models.identity import text_identity, vae_identity
from mmalign.references import Reference
from mmalign.training.config import Config
from mmalign.training.image_data import ImageData
from mmalign.training.kept_scores import file_hashes, with_kept_scores


def with_kept_image_scores(
    reference: Reference | None, config: Config, data: ImageData, branches: Sequence[str]
) -> Reference | None:
    """``reference``, with its scores kept in ``reference.path`` where the configuration says so."""
    if reference is None or config.reference.path is None:
        return reference
    hashes = file_hashes(config)
    identity: dict[str, Any] = {
        # Latents that are kept in half precision are other latents.
        "data.cache_dtype": config.data.cache_dtype if config.data.cache == "disk" else "float32",
        "vae": vae_identity(config.model, hashes),
        "text": text_identity(config.model, hashes),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
    }
    return with_kept_scores(reference, config, data.fingerprint, branches, identity)
