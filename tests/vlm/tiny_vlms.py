"""Tiny random vision-language models of the real classes: the code path of the large ones, milliseconds to run.

``tiny_vlm(kind)`` gives the model, ``pictures(kind, ...)`` what its processor would return for pictures, with the
number of their tokens. Token ids are those of :func:`tests.vlm.tiny_processors.tiny_tokenizer`.
"""

from typing import Any

import torch
import transformers
from torch import Tensor

PAD, BOS, EOS, UNKNOWN, IMAGE, VIDEO, VISION_START, VISION_END = range(8)
VOCABULARY = 128
SIDE = 28
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 7,
}
_QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
_QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
KINDS = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "idefics3",
    "smolvlm",
)


def config_of(kind: str) -> Any:
    llama, clip = {**TEXT, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}
    if kind == "llava":
        return transformers.LlavaConfig(
            vision_config=clip, text_config=llama, image_token_index=IMAGE, image_seq_length=16
        )
    if kind == "llava_next":
        return transformers.LlavaNextConfig(
            vision_config=clip, text_config=llama, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS
        )
    if kind == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            vision_config={**VISION, "model_type": "siglip_vision_model"},
            text_config={**TEXT, "model_type": "qwen2"},
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
        )
    if kind == "qwen2_vl":
        vision = {**_QWEN_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config={**TEXT, **_MROPE}, vision_config=vision, **_QWEN_TOKENS)
    if kind == "qwen2_5_vl":
        vision = {
            **_QWEN_VISION,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        }
        return transformers.Qwen2_5_VLConfig(text_config={**TEXT, **_MROPE}, vision_config=vision, **_QWEN_TOKENS)
    if kind == "qwen3_vl":
        vision = {
            **_QWEN_VISION,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        }
        rope = {"rope_parameters": {**_MROPE["rope_parameters"], "mrope_interleaved": True}, "head_dim": 8}
        return transformers.Qwen3VLConfig(text_config={**TEXT, **rope}, vision_config=vision, **_QWEN_TOKENS)
    if kind == "internvl":
        vision = {**VISION, "image_size": [SIDE, SIDE], "patch_size": [7, 7], "model_type": "internvl_vision"}
        return transformers.InternVLConfig(
            vision_config=vision,
            text_config={**TEXT, "model_type": "qwen2"},
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    if kind == "idefics3":
        vision = {**VISION, "model_type": "idefics3_vision"}
        return transformers.Idefics3Config(
            vision_config=vision, text_config=llama, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
        )
    vision = {**VISION, "model_type": "smolvlm_vision"}
    return transformers.SmolVLMConfig(
        vision_config=vision, text_config=llama, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
    )


def tiny_vlm(
    kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, attention: str = "sdpa", **changes: Any
) -> Any:
    """The model in eval mode, in float64; ``changes`` are settings of its language model."""
    config = config_of(kind)
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name or "newline" in name:
                torch.nn.init.normal_(parameter, std=0.5)  # or all tokens would be nearly as likely
    return model.to(dtype).eval()


def pictures(kind: str, *, seed: int = 0, number: int = 1, wide: bool = False) -> dict[str, Tensor]:
    """Media of ``number`` pictures of one prompt; ``wide`` ones have more patches where the family has such."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    if kind in ("llava", "internvl"):
        return {"pixel_values": draw(number, 3, SIDE, SIDE)}
    if kind in ("llava_next", "llava_onevision"):
        size = [SIDE, 2 * SIDE] if wide else [SIDE - 4, SIDE]
        media = {"pixel_values": draw(number, 3, 3, SIDE, SIDE), "image_sizes": torch.tensor([size] * number)}
        return media | ({"batch_num_images": torch.tensor([number])} if kind == "llava_onevision" else {})
    if kind.startswith("qwen"):
        grid = torch.tensor([[1, 4, 8 if wide else 6]] * number)
        return {"pixel_values": draw(int(grid.prod(-1).sum()), 3 * 2 * 4 * 4), "image_grid_thw": grid}
    return {"pixel_values": draw(1, number, 3, SIDE, SIDE)}


def tokens_of(model: Any, media: dict[str, Tensor], kind: str = "image") -> int:
    """How many image (or video) tokens the model's own encoder gives for ``media``."""
    with torch.no_grad():
        features = getattr(model.model, f"get_{kind}_features")(**media, return_dict=True).pooler_output
    return sum(part.reshape(-1, part.shape[-1]).shape[0] for part in features)
