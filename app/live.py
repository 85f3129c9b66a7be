"""Sampling the models of the settings: loaded when first needed, one request at a time, settings as given."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from app.settings import Model, Settings
from app.sources import OnStep, Picture, Request
from app.validation import check_choice
from app.weights import digest_of
from mmalign.cli.sampling import Dtype, Sampler, aligned_weights

MOST_LOADED = 2
MOST_KEPT = 256
_ADAPTER = "aligned"


class LiveSource:
    """Models of ``settings``, sampled under one lock. ``device`` None: CUDA where there is one.

    At most ``most_loaded`` pipelines are in memory; the one that was used longest ago makes room.
    """

    live = True

    def __init__(self, settings: Settings, device: str | None = None, most_loaded: int = MOST_LOADED) -> None:
        self.settings, self.notice = settings, settings.notice
        self.device, self.most_loaded = device or settings.device, most_loaded
        self.title = " vs ".join(self.names) if len(self.names) == 2 else f"{len(self.names)} models"
        self._models = {model.name: model for model in settings.models}
        self._lock = threading.Lock()
        self._pipes: OrderedDict[str, tuple[Any, float, bool]] = OrderedDict()
        self._kept: OrderedDict[tuple[Any, ...], Picture] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """The models, in the order of the settings."""
        return [model.name for model in self.settings.models]

    @property
    def cheap(self) -> bool:
        """Whether every model is one of the embedded ones, which take a second."""
        return all(model.base.startswith("playground/") for model in self.settings.models)

    @property
    def has_lora(self) -> bool:
        """Whether the LoRA-scale slider would move anything."""
        return any(_is_lora(model) and model.lora_scale is None for model in self.settings.models)

    def warm(self) -> None:
        """Load in the background what is compared first, so that the first visitor does not wait for it."""
        threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def _warm(self) -> None:
        with self._lock:
            for model in self.settings.models[: self.most_loaded]:
                self._pipe(model, 1.0 if model.lora_scale is None else model.lora_scale)

    def prompts(self) -> list[str]:
        """Those of the settings, or held-out captions of the playground where all models are of it."""
        if self.settings.prompts:
            return list(self.settings.prompts)
        if self.cheap:
            from mmalign.playground.scene import held_out_prompts

            single = sorted(held_out_prompts("single", 24), key=lambda prompt: "large" not in prompt)
            return [*single, *held_out_prompts("pair", 4), *held_out_prompts("count", 4)]
        return [
            "a portrait of an old fisherman, window light, 85 mm photograph",
            "an orange cat on a windowsill watching the rain, watercolour",
            "three green glass bottles on a wooden table, studio photograph",
            "a neon sign that says OPEN above a small ramen bar at night",
        ]

    def seeds(self, prompt: str) -> list[int]:
        """Empty: any seed will do."""
        del prompt
        return []

    def sample(self, model: str, request: Request, on_step: OnStep | None = None) -> list[Picture]:
        """A picture per seed. What was sampled a moment ago is not sampled again."""
        entry = self._models[check_choice(model, "model", self.names)]
        request = self.effective(model, request)
        with self._lock:
            missing = [seed for seed in request.seeds if self._key(model, request, seed) not in self._kept]
            done, steps = 0, request.steps * len(missing)
            for seed in missing:

                def told(step: int, before: int = done) -> None:
                    if on_step is not None:
                        on_step(before + step, steps)

                picture = self._sample_one(entry, request, seed, told)
                self._kept[self._key(model, request, seed)] = picture
                done += request.steps
            pictures = [self._kept[self._key(model, request, seed)] for seed in request.seeds]
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
            return pictures

    def weights(self, model: str, request: Request) -> dict[str, Any]:
        """Digests of the base and of the aligned weights, the run's name, and the LoRA's scale."""
        from mmalign.models import peek

        entry = self._models[check_choice(model, "model", self.names)]
        info = peek(entry.base)
        base = {"model_hash": digest_of(info.file or info.location)}
        if entry.aligned is None:
            return {**base, "adapter": None, "adapter_hash": None, "lora_scale": None}
        weights = aligned_weights(entry.aligned)
        scale = self.effective(model, request).lora_scale if _is_lora(entry) else None
        run = weights.parent.name if weights.name == "aligned" else weights.stem
        return {**base, "adapter": run or None, "adapter_hash": digest_of(str(weights)), "lora_scale": scale}

    def effective(self, model: str, request: Request) -> Request:
        """The request with what the settings fix for ``model``, and without what does not reach it."""
        entry = self._models[check_choice(model, "model", self.names)]
        guidance = request.guidance if entry.guidance is None else entry.guidance
        scale = request.lora_scale if entry.lora_scale is None else entry.lora_scale
        return Request(
            request.prompt,
            request.seeds,
            request.negative_prompt if guidance > 1 else "",
            request.steps if entry.steps is None else entry.steps,
            guidance,
            scale if _is_lora(entry) or entry.lora_scale is not None else 1.0,
        )

    def _key(self, model: str, request: Request, seed: int) -> tuple[Any, ...]:
        how = (request.negative_prompt, request.steps, request.guidance, request.lora_scale)
        return (model, request.prompt, seed, *how)

    def _sample_one(self, entry: Model, request: Request, seed: int, told: Any) -> Picture:
        from mmalign.models import generate

        pipe, length = self._pipe(entry, request.lora_scale)
        tokens: dict[str, Any] = {} if length is None else {"max_sequence_length": length}
        image = generate(
            pipe,
            [request.prompt],
            [seed],
            steps=request.steps,
            guidance_scale=request.guidance,
            negative_prompt=request.negative_prompt,
            on_step=told,
            **tokens,
        )[0]
        return Picture(image, entry.name, request.prompt, seed, self._provenance(entry, request, pipe))

    def _sampler(self, entry: Model) -> Sampler:
        weights = None if entry.aligned is None else aligned_weights(entry.aligned)
        return Sampler(entry.base, weights, dtype=Dtype(entry.dtype or self._dtype()))

    def _pipe(self, entry: Model, scale: float) -> tuple[Any, int | None]:
        """The pipeline with its LoRA at ``scale``, and the token limit that the run was trained with."""
        from mmalign.models import load_aligned

        sampler = self._sampler(entry)
        pipe, loaded, can_rescale = self._pipes.pop(entry.name, (None, scale, True))
        if pipe is not None and loaded != scale and not can_rescale:
            pipe = None
        if pipe is None:
            while len(self._pipes) >= self.most_loaded:
                self._pipes.popitem(last=False)
            weights = sampler.aligned
            pipe = load_aligned(sampler.model(), weights, lora_scale=scale, dtype=sampler.dtype.value)
            pipe = pipe.to(self._device())
            can_rescale = weights is not None and _only_lora(pipe, weights)
        elif loaded != scale:
            _denoiser(pipe).set_adapters([_ADAPTER], [scale])
        self._pipes[entry.name] = (pipe, scale, can_rescale)
        return pipe, sampler.choices().get("max_sequence_length")

    def _device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def _dtype(self) -> str:
        return "bfloat16" if self._device().startswith("cuda") else "float32"

    def _provenance(self, entry: Model, request: Request, pipe: Any) -> dict[str, Any]:
        import mmalign

        return {
            "base": entry.base,
            **self.weights(entry.name, request),
            "scheduler": type(pipe.scheduler).__name__,
            "steps": request.steps,
            "guidance": request.guidance,
            "dtype": str(_denoiser(pipe).dtype).removeprefix("torch."),
            "negative_prompt": request.negative_prompt,
            "mmalign": mmalign.__version__,
        }


def _is_lora(entry: Model) -> bool:
    """Whether what was trained is a LoRA, which has a scale, and not the whole model."""
    from mmalign.models.aligned import is_lora

    return entry.aligned is not None and is_lora(aligned_weights(entry.aligned))


def _denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def _only_lora(pipe: Any, weights: Path) -> bool:
    """Whether another scale is a matter of ``set_adapters``: no module trained in full, and no DoRA."""
    from mmalign.models.aligned import is_lora
    from mmalign.models.lora_files import read_lora

    if not is_lora(weights):
        return False
    read = read_lora(weights, _denoiser(pipe))
    return bool(read.layers) and not read.modules and not read.is_dora
