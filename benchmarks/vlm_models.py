"""What ``benchmarks.vlm`` trains: models of LLaVA's and Qwen2.5-VL's shape with random weights, and rows for them.

Nothing is downloaded and no weight is saved: every process draws the same weights from the same seed.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from mmalign.types import ImageBytes, ImagePart, Message, VLMPair

PAD, BOS, EOS, UNKNOWN, IMAGE, VIDEO, VISION_START, VISION_END = range(8)
PATCH, MERGE = 14, 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROLES = ("USER:", "ASSISTANT:")
# One token per word: a mark in front of a picture, and an end token behind every turn.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ ' ' + message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}MARK "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}"
)


@dataclass(frozen=True)
class Profile:
    """One model and one kind of row. ``side``: pixels of the square that the vision tower sees.

    ``tolerance``: how far log-probs of two implementations may be apart, relative to the largest. ``warm_up`` steps are
    not timed, ``steps`` are.
    """

    name: str
    kind: str
    text: dict[str, Any] = field(repr=False)
    vision: dict[str, Any] = field(repr=False)
    side: int
    question_tokens: int = 48
    answer_tokens: int = 30
    batch_size: int = 4
    rank: int = 16
    dtype: str = "float32"
    device: str = "cpu"
    checkpointing: bool = False
    tolerance: float = 1e-5
    warm_up: int = 1
    steps: int = 2
    repetitions: int = 3

    @property
    def picture_tokens(self) -> int:
        """Tokens of one picture in the language model."""
        patches = (self.side // PATCH) ** 2
        return patches if self.kind == "llava" else patches // MERGE**2


def _text(
    width: int, inner: int, layers: int, heads: int, vocabulary: int, groups: int | None = None
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def _clip(width: int, inner: int, layers: int, heads: int, side: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": PATCH,
    }


def _qwen_vision(width: int, inner: int, depth: int, heads: int, out: int, whole: list[int]) -> dict[str, Any]:
    return {
        "depth": depth,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_heads": heads,
        "out_hidden_size": out,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": 8 * PATCH,
        "fullatt_block_indexes": whole,
    }


_GPU: dict[str, Any] = {
    "dtype": "bfloat16",
    "device": "cuda",
    "checkpointing": True,
    "tolerance": 2e-2,
    "warm_up": 3,
    "steps": 10,
}

# 56m has LLaVA's vocabulary, which leaves its layers a third of the weights; in 56m-deep the vocabulary has 4 % of them
# and the vision tower 6 %, as (4 %, 5 %) in LLaVA-1.5-7B.
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("tiny", "llava", _text(128, 344, 4, 4, 512), _clip(64, 128, 3, 4, 168), 168, 16, 8, warm_up=3, steps=8),
        Profile(
            "tiny-qwen",
            "qwen2_5_vl",
            _text(64, 128, 2, 4, 512, 2),
            _qwen_vision(32, 64, 2, 2, 64, [1]),
            112,
            12,
            8,
            dtype="bfloat16",
            checkpointing=True,
            tolerance=2e-2,
        ),
        Profile("56m", "llava", _text(512, 1376, 6, 8, 32064), _clip(192, 768, 6, 6, 336), 336, steps=1),
        Profile("56m-deep", "llava", _text(512, 1376, 16, 8, 2048), _clip(192, 768, 6, 6, 336), 336, steps=1),
        Profile("llava-7b", "llava", _text(4096, 11008, 32, 32, 32064), _clip(1024, 4096, 24, 16, 336), 336, **_GPU),
        Profile(
            "qwen2.5-vl-7b",
            "qwen2_5_vl",
            _text(3584, 18944, 28, 28, 152064, 4),
            _qwen_vision(1280, 3420, 32, 16, 3584, [7, 15, 23, 31]),
            672,
            **_GPU,
        ),
    )
}


def prepare(profile: Profile, folder: Path) -> Path:
    """Write configuration and processor, no weights, to ``folder``."""
    config_of(profile).save_pretrained(folder)
    processor_of(profile).save_pretrained(folder)
    return folder


def config_of(profile: Profile) -> Any:
    """The configuration of the model, in transformers' classes."""
    if profile.kind == "llava":
        return transformers.LlavaConfig(
            vision_config={**profile.vision, "model_type": "clip_vision_model"},
            text_config={**profile.text, "model_type": "llama"},
            image_token_index=IMAGE,
            image_seq_length=profile.picture_tokens,
        )
    head = profile.text["hidden_size"] // profile.text["num_attention_heads"] // 2
    rope = {"rope_type": "default", "mrope_section": [head - 2 * (head * 3 // 8), *[head * 3 // 8] * 2]}
    return transformers.Qwen2_5_VLConfig(
        text_config={**profile.text, "rope_parameters": {**rope, "rope_theta": 1e6}},
        vision_config=profile.vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def model_of(profile: Profile, *, seed: int = 0) -> Any:
    """The model, frozen, in ``profile.dtype`` on ``profile.device``."""
    dtype, width = DTYPES[profile.dtype], profile.text["hidden_size"]
    with torch.random.fork_rng(devices=[0] if profile.device == "cuda" else []), torch.device(profile.device):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(
            config_of(profile), attn_implementation="sdpa", dtype=dtype
        )
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name or "projector" in name:
                # transformers' 0.02 would make all tokens nearly as likely, and pictures of no influence.
                torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else 2 * width**-0.5)
    return model.requires_grad_(False).eval()


def parameters_of(profile: Profile) -> dict[str, int]:
    """How many weights the whole model, its vision tower with projector, and its vocabulary have."""
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config_of(profile))
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    vocabulary = sum(size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name)
    language = sum(size for name, size in sizes.items() if "language_model" in name or "lm_head" in name)
    total = sum(sizes.values())
    return {"all": total, "vision": total - language, "vocabulary": vocabulary}


def processor_of(profile: Profile) -> Any:
    """The processor: pictures as the original does them, one token per word of text."""
    if profile.kind == "llava":
        size: Any = {"size": {"shortest_edge": profile.side}}
        size["crop_size"] = {"height": profile.side, "width": profile.side}
        return transformers.LlavaProcessor(
            transformers.CLIPImageProcessor(**size),
            _tokenizer("<image>", "<video>"),
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            image_token="<image>",
            num_additional_image_tokens=1,
            chat_template=TEMPLATE.replace("MARK", "<image>"),
        )
    patches: Any = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    return transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**patches, min_pixels=profile.side**2, max_pixels=profile.side**2),
        _tokenizer("<|image_pad|>", "<|video_pad|>"),
        transformers.Qwen2VLVideoProcessor(**patches),
        chat_template=TEMPLATE.replace("MARK", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def _tokenizer(image: str, video: str) -> Any:
    special = ["<pad>", "<s>", "</s>", "<unk>", image, video, "<|vision_start|>", "<|vision_end|>"]
    words = [*special, *ROLES, *(f"w{number}" for number in range(256))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[4:],
    )


def pairs(profile: Profile, number: int, *, seed: int = 0, uneven: bool = False) -> list[VLMPair]:
    """Rows about a picture of noise each, all answers of ``answer_tokens`` tokens (``uneven``: of several lengths)."""
    rows = []
    for row in range(number):
        random = np.random.default_rng([seed, row])
        lengths = [profile.answer_tokens - 1] * 2
        if uneven:
            lengths = [max(1, length - 5 * row - 3 * side) for side, length in enumerate(lengths)]
        question, chosen, rejected = (
            " ".join(f"w{word}" for word in random.integers(0, 256, count))
            for count in (profile.question_tokens, *lengths)
        )
        prompt = (Message("user", (ImagePart(0), question)),)
        rows.append(VLMPair(f"row-{row}", prompt, chosen, rejected, (_picture(profile.side, random, f"{row}"),)))
    return rows


def _picture(side: int, random: np.random.Generator, name: str) -> ImageBytes:
    """Noise as PNG, a third wider than high, as photographs mostly are; of ``side`` pixels in its shorter edge."""
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)  # noise of single pixels looks the same everywhere
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(stream, "PNG")
    return ImageBytes(f"picture {name}", data=stream.getvalue())
