"""How well a device is used: operations that a training step has to do, a second, over what products of matrices reach.

Operations of a step are those of the method, forward passes of policy and reference and the backward, whatever a
program does beside them: repeated forwards of checkpointing and encoders count for nothing.
"""

import time
from typing import Any

import torch

SIDES = {"cuda": 8192, "cpu": 1024}
ROUNDS = {"cuda": 30, "cpu": 3}


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of products of square matrices, the best round; on a CPU of the processor's seconds."""
    side = SIDES[device]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first warms up and is never the best
        began = now(device)
        for _ in range(ROUNDS[device]):
            left @ right
        best = max(best, ROUNDS[device] * 2 * side**3 / (now(device) - began))
    return best


def now(device: str) -> float:
    """Seconds: on a GPU of the clock, once it has done all it was given; else of the processor."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def diffusion_operations(profile: Any, *, lora: bool, reference: bool) -> int:
    """Of one pair, counted on the meta device with the UNet as it is trained."""
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.sdxl_models import VAE_FACTOR, unet_of
    from mmalign.models import make_trainable
    from mmalign.training.config import LoRAConfig

    shape = profile.shape
    with torch.device("meta"):
        unet: Any = unet_of(shape)
        make_trainable(unet, LoRAConfig(rank=profile.rank) if lora else None)
        side = shape.resolution // VAE_FACTOR
        noisy, text = torch.empty(2, 4, side, side), torch.empty(2, 77, shape.text_width)
        more = {"text_embeds": torch.empty(2, shape.text[1][0]), "time_ids": torch.empty(2, 6)}
        times = torch.empty(2)
    with FlopCounterMode(display=False) as counter:
        unet(noisy, times, text, added_cond_kwargs=more).sample.sum().backward()
        if reference:
            with torch.no_grad():
                unet(noisy, times, text, added_cond_kwargs=more)
    return counter.get_total_flops()


def vlm_operations(profile: Any, parameters: dict[str, int]) -> float:
    """Of one packed pair under LoRA: 3 * (2 * weights * tokens + 2 * layers * width * tokens^2), and the picture once.

    Three: forward, backward to the activations, reference. The second term is attention over earlier tokens.
    """
    language = (
        parameters["all"] - parameters["vision"] - parameters["vocabulary"] / 2
    )  # the embedding multiplies nothing
    tokens = profile.picture_tokens + profile.question_tokens + 2 * profile.answer_tokens
    attention = 2 * profile.text["num_hidden_layers"] * profile.text["hidden_size"] * tokens**2
    return 3 * (2 * language * tokens + attention) + 2 * parameters["vision"] * profile.picture_tokens
