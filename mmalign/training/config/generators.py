"""Settings that only image generators have: in a run of another family they would be ignored, so they are mistakes."""

from collections.abc import Iterable

from mmalign.training.config.data import DataConfig
from mmalign.training.config.evaluation import EvaluationConfig
from mmalign.training.config.loop import TrainingConfig
from mmalign.training.config.model import ModelConfig
from mmalign.training.config.section import Section

_SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}
_ONLY_THERE: dict[str, tuple[str, ...]] = {
    "model": (
        "adapter",
        "config",
        "variant",
        "vae",
        "vae_dtype",
        "drop",
        "quantize",
        "offload",
        "max_sequence_length",
        "guidance",
    ),
    "data": (
        "mixed",
        "resolution",
        "crop",
        "flip",
        "caption_dropout",
        "buckets",
        "cache",
        "cache_folder",
        "cache_latents",
        "cache_dtype",
    ),
    "training": ("timesteps", "safeguard", "curriculum", "compile"),
    "evaluation": ("pictures", "timestep_bins"),
}


def generator_settings(sections: dict[str, Section], *, also: Iterable[str] = ()) -> list[str]:
    """``section.setting`` of everything in ``sections`` that only image generators read and that is not its default.

    ``also``: further settings, by the same names, that the family asking does not read.
    """
    names = [f"{section}.{setting}" for section, settings in _ONLY_THERE.items() for setting in settings]
    return [name for name in (*names, *also) if _is_given(name, sections)]


def _is_given(name: str, sections: dict[str, Section]) -> bool:
    section, setting = name.split(".")
    default = _SECTIONS[section].model_fields[setting].get_default(call_default_factory=True)
    return getattr(sections[section], setting) != default
