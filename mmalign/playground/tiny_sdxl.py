"""``tiny-sdxl``: the SDXL architecture at playground size, with random weights.

Same classes, same conditioning (two CLIP text encoders, penultimate hidden states concatenated, pooled projection and
six micro-conditioning numbers added to the timestep embedding), 64 px pictures over a VAE that downsamples by four.
"""

# diffusers annotates its tuples as one element long.
# pyright: reportArgumentType=false

from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mmalign.playground.tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, build_tokenizer

IMAGE_SIZE = 64
TEXT_WIDTH = 64
TIME_ID_WIDTH = 16


def build_text_config(vocabulary: int) -> CLIPTextConfig:
    """Two narrow transformer layers: enough for a closed grammar of about fifty words."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )


def build_vae() -> AutoencoderKL:
    """64 px RGB <-> 16 x 16 latents with four channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 24, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """About 2.6 M parameters; as in SDXL, no attention at the finest resolution."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * TIME_ID_WIDTH,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule and sampler."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )


def build_tiny_sdxl() -> StableDiffusionXLPipeline:
    """The whole pipeline with random weights (torch's global seed decides which)."""
    tokenizer = build_tokenizer()
    config = build_text_config(len(tokenizer))
    return StableDiffusionXLPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        unet=build_unet(),
        scheduler=build_scheduler(),
        add_watermarker=False,
    )
