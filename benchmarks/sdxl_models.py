"""SDXL in its own classes with random weights: the real one, a smaller one that divides its work alike, and a tiny one.

Nothing is downloaded; the tokenizer is the playground's. How many operations a part costs is counted on the meta
device, so nothing is computed for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mmalign.playground.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, build_tokenizer

VAE_FACTOR = 8


@dataclass(frozen=True)
class Shape:
    """``text``: (width, layers, heads) of each text encoder. ``depths``: transformer layers per level of the UNet."""

    resolution: int
    widths: tuple[int, ...]
    heads: tuple[int, ...]
    vae: tuple[int, ...]
    groups: int
    time: int
    text: tuple[tuple[int, int, int], tuple[int, int, int]]
    depths: tuple[int, ...] = (1, 2, 10)

    @property
    def text_width(self) -> int:
        """Both text encoders' widths, side by side."""
        return self.text[0][0] + self.text[1][0]


REAL = Shape(1024, (320, 640, 1280), (5, 10, 20), (128, 256, 512, 512), 32, 256, ((768, 12, 12), (1280, 32, 20)))
MID = Shape(256, (64, 128, 256), (2, 4, 8), (32, 64, 64, 64), 16, 32, ((128, 12, 4), (128, 12, 4)))
TINY = Shape(64, (32, 32, 64), (1, 1, 2), (16, 16, 16, 16), 8, 8, ((32, 2, 2), (32, 2, 2)), (1, 1, 1))
# The tiny UNet with a VAE whose work shows: the encoding of a picture is what a step spends most on.
ENCODING = Shape(128, (32, 32, 64), (1, 1, 2), (32, 64, 64, 64), 16, 8, ((32, 2, 2), (32, 2, 2)), (1, 1, 1))


def save_pipeline(shape: Shape, folder: Path, *, device: str = "cpu") -> Path:
    """The pipeline's folder with weights of seed 0 at ``folder``, unless it is there already."""
    if not (folder / "model_index.json").is_file():
        with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
            torch.manual_seed(0)
            pipeline_of(shape, device).save_pretrained(folder)
    return folder


def pipeline_of(shape: Shape, device: str = "cpu") -> StableDiffusionXLPipeline:
    """All parts, random; drawn on ``device``, where billions of weights take seconds."""
    with torch.device(device):
        parts: dict[str, Any] = {
            "vae": vae_of(shape),
            "text_encoder": CLIPTextModel(_text(shape, 0)),
            "text_encoder_2": CLIPTextModelWithProjection(_text(shape, 1)),
            "unet": unet_of(shape),
        }
    return StableDiffusionXLPipeline(
        **parts,
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _text(shape: Shape, index: int) -> CLIPTextConfig:
    width, layers, heads = shape.text[index]
    return CLIPTextConfig(
        vocab_size=len(build_tokenizer()),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=width,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )


def vae_of(shape: Shape) -> AutoencoderKL:
    """The VAE."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
        block_out_channels=shape.vae,  # type: ignore[arg-type]
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=shape.groups,
        scaling_factor=0.13025,
    )


def unet_of(shape: Shape) -> UNet2DConditionModel:
    """SDXL's blocks: two layers each, transformers as ``depths`` says, no attention at the finest resolution."""
    return UNet2DConditionModel(
        sample_size=shape.resolution // VAE_FACTOR,
        block_out_channels=shape.widths,  # type: ignore[arg-type]
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),  # type: ignore[arg-type]
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),  # type: ignore[arg-type]
        layers_per_block=2,
        transformer_layers_per_block=shape.depths,  # type: ignore[arg-type]
        attention_head_dim=shape.heads,  # type: ignore[arg-type]
        cross_attention_dim=shape.text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=shape.time,
        projection_class_embeddings_input_dim=shape.text[1][0] + 6 * shape.time,
    )


@cache
def costs(shape: Shape) -> dict[str, float]:
    """GFLOP of encoding one picture and of one forward pass of the UNet, and their ratio."""
    with torch.device("meta"):
        return count(unet_of(shape), vae_of(shape), shape.resolution, VAE_FACTOR)


def count(unet: UNet2DConditionModel, vae: AutoencoderKL, resolution: int, factor: int) -> dict[str, float]:
    """:func:`costs` of two modules on the meta device; ``factor``: pixels per latent."""
    config: Any = unet.config
    side, pooled = (
        resolution // factor,
        config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,
    )
    with torch.device("meta"):
        more = {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}
        noise, text = (
            torch.empty(1, vae.config["latent_channels"], side, side),
            torch.empty(1, 77, config.cross_attention_dim),
        )
        encode = operations(lambda: vae.encode(torch.empty(1, 3, resolution, resolution)))
        forward = operations(lambda: unet(noise, torch.empty(1), text, added_cond_kwargs=more))
    return {"vae_encode_gflop": encode / 1e9, "unet_forward_gflop": forward / 1e9, "ratio": encode / forward}


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of ``call``, a multiplication with its addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
