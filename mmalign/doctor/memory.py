"""Memory of one device while training, predicted from the recipe: weights, states, and what a step needs beside them.

peak = weights + reference + gradients + optimizer + average + encoders + activations. A step, forward of policy and
reference and backward, is run with the real adapter on the real architecture on the meta device, and what is alive
there at once is counted (``live.py``), so batch size, resolution, gradient checkpointing and the number of branches are
exact; kernels' workspaces and the allocator's rounding are not in it. ``python -m benchmarks.memory`` compares it with
what runs really held; on GPUs that has not been done yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmalign.doctor.activations import fused_attention
from mmalign.doctor.live import LiveBytes
from mmalign.doctor.shapes import meta_batch, meta_components
from mmalign.losses import Objective
from mmalign.training.config import Config
from mmalign.training.image_model import build_adapter
from mmalign.training.image_reference import reference_kind

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes of optimizer state per trained parameter; adafactor's follow from the shapes (see ``state_bytes``).
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what they are for.

    ``activations``: what is alive at the worst moment beyond all the others; gradients are not all there by then, so
    it may be less than what the forward keeps.
    """

    weights: int
    reference: int
    gradients: int
    optimizer: int
    average: int
    encoders: int
    activations: int

    @property
    def total(self) -> int:
        """The sum: the predicted peak."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Name -> bytes, in the order in which they are told."""
        return dict(vars(self))


def predict_memory(config: Config) -> MemoryEstimate:
    """The estimate for ``config`` on one process without sharding."""
    objective, training, lora = Objective(config.objective), config.training, config.model.lora
    components = meta_components(config)
    denoiser: Any = components.denoiser
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    weights = _bytes(denoiser)
    kind = reference_kind(config, objective)
    copied = {
        "frozen": weights - (4 * count if lora else 0),
        "adapter": 4 * count,
        "snapshot": 4 * count,
        "ema": 4 * count,
    }
    if kind in ("snapshot", "ema") and lora is None:
        copied[kind] = weights
    needs = max(_step(config, components, objective), _encoding(config, components))
    return MemoryEstimate(
        weights=weights,
        reference=copied.get(kind, 0),
        gradients=4 * count,
        optimizer=state_bytes(training.optimizer, trained),
        average=4 * count if training.ema else 0,
        encoders=_encoders(config, components),
        activations=max(0, needs - 4 * count),
    )


def state_bytes(optimizer: str, trained: Iterable[nn.Parameter]) -> int:
    """What the optimizer keeps. Adafactor: fp32 means over the last dimension and over the one before, [a, b] -> a + b.

    A convolution's kernels are its last two dimensions, so it keeps nearly as much as it has weights.
    """
    if optimizer != "adafactor":
        return STATE_BYTES[optimizer] * sum(parameter.numel() for parameter in trained)
    return 4 * sum(
        weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2] if weight.ndim > 1 else weight.numel()
        for weight in trained
    )


def _encoders(config: Config, components: Any) -> int:
    """Text encoders and VAE stay on the device unless everything is cached, or they are kept on the CPU."""
    if config.data.cache != "none" or config.model.offload == "encoders":
        return 0
    parts = [part for part in vars(components).get("encoders", {}).values() if isinstance(part, nn.Module)]
    return sum(map(_bytes, parts))


def _encoding(config: Config, components: Any) -> int:
    """Bytes alive at once while the VAE encodes a batch of one branch, and its weights where it comes for that only."""
    if config.data.cache != "none":
        return 0
    vae: Any = components.encoders["vae"]
    side = config.data.resolution
    with torch.no_grad(), fused_attention(), LiveBytes([*vae.parameters(), *vae.buffers()]) as live:
        vae.encode(torch.empty(config.training.batch_size, 3, side, side, dtype=vae.dtype, device="meta"))
    return live.peak + (_bytes(vae) if config.model.offload == "encoders" else 0)


def _step(config: Config, components: Any, objective: Objective) -> int:
    """Bytes alive at once during a step, gradients among them; autocast's casts of weights too."""
    denoiser: Any = components.denoiser
    if config.training.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.training.mixed_precision)
    casts = 0
    if low is not None:
        # Autocast keeps a cast copy of every weight for the backward; running in that precision counts the rest.
        casts = 2 * sum(parameter.numel() for parameter in denoiser.parameters() if parameter.dtype != low)
        denoiser.to(low)
    dtype = next(denoiser.parameters()).dtype
    adapter = build_adapter(components, config.training)
    batch = meta_batch(config, components, objective, dtype)
    denoiser.train()
    live = LiveBytes([*denoiser.parameters(), *denoiser.buffers()])
    for parameter in denoiser.parameters():
        if parameter.requires_grad and parameter.element_size() < 4:  # gradients are of the weights' own precision
            parameter.register_post_accumulate_grad_hook(
                lambda made: live.add((4 - made.element_size()) * made.numel())
            )
    with fused_attention(), live:
        # The policy in the reference's place needs what the reference needs.
        scores = adapter.score(denoiser, denoiser if objective.needs_reference else None, batch, objective.branches)
        sum(scores[branch].logp.sum() for branch in objective.branches).backward()  # type: ignore[union-attr]
    return live.peak + casts


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
