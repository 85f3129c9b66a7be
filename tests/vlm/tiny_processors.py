"""Tokenizers and processors of tiny vision-language models, and whole folders with them; tokens are characters."""

import string
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse

from tests.vlm.tiny_vlms import PINPOINTS, SIDE, tiny_vlm

IMAGE_MARK = {"qwen": "<|image_pad|>"}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE\n"
    "{% elif part['type'] == 'video' %}VIDEO\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ END }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def tiny_tokenizer(kind: str = "llava") -> Any:
    """One token per character of printable ASCII after eight special ones, whose ids are those of ``tiny_vlms``."""
    qwen = kind.startswith("qwen")
    image, video = ("<|image_pad|>", "<|video_pad|>") if qwen else ("<image>", "<video>")
    special = ["<pad>", "<s>", "</s>", "<unk>", image, video, "<|vision_start|>", "<|vision_end|>"]
    letters = [letter for letter in string.printable if letter not in "\r\x0b\x0c"]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[4:],
    )


def template(image: str, video: str = "<video>", *, ends: bool = True) -> str:
    """A chat template; ``ends``: turns end with the end token and a line break, as Qwen's do."""
    return (
        TEMPLATE.replace("IMAGE", image)
        .replace("VIDEO", video)
        .replace("{{ END }}", "{{ eos_token + '\n' }}" if ends else "{{ ' ' }}")
    )


def tiny_processor(kind: str, *, ends: bool = True) -> Any:
    tokenizer = tiny_tokenizer(kind)
    if kind in ("llava", "llava_next"):
        pictures: Any = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        given = {
            "tokenizer": tokenizer,
            "patch_size": 7,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "chat_template": template("<image>", ends=ends),
        }
        if kind == "llava":
            return transformers.LlavaProcessor(transformers.CLIPImageProcessor(**pictures), **given)
        slow = transformers.LlavaNextImageProcessor(**pictures, image_grid_pinpoints=PINPOINTS)
        return transformers.LlavaNextProcessor(slow, **given)
    if kind.startswith("qwen"):
        return _qwen(kind, tokenizer, ends=ends)
    return _SQUARES[kind](tokenizer, template("<image>", ends=ends))


def _qwen(kind: str, tokenizer: Any, *, ends: bool) -> Any:
    patches: Any = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels: Any = {**patches, "min_pixels": 8 * 8, "max_pixels": 40 * 40}
    classes = {
        "qwen2_vl": (transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen2_5_vl": (transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor),
        "qwen3_vl": (transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor),
    }
    processor, videos = classes[kind]
    if kind == "qwen3_vl":  # its limits are of a whole video
        pixels = {**patches, "size": {"shortest_edge": 8 * 8, "longest_edge": 8 * 40 * 40}}
    return processor(
        transformers.Qwen2VLImageProcessor(**patches, min_pixels=8 * 8, max_pixels=40 * 40),
        tokenizer,
        videos(**pixels),
        chat_template=template(
            "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>", ends=ends
        ),
    )


_SQUARE: Any = {"height": SIDE, "width": SIDE}


def _onevision(tokenizer: Any, chat: str) -> Any:
    return transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=_SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=_SQUARE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat,
    )


def _internvl(tokenizer: Any, chat: str) -> Any:
    names = {"start": "<|vision_start|>", "end": "<|vision_end|>"}
    for which, token in names.items():
        setattr(tokenizer, f"{which}_image_token", token)
        setattr(tokenizer, f"{which}_image_token_id", tokenizer.convert_tokens_to_ids(token))
    tokenizer.context_image_token, tokenizer.video_token = "<image>", "<video>"
    tokenizer.context_image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=_SQUARE, crop_to_patches=True, min_patches=1, max_patches=2),
        tokenizer,
        transformers.InternVLVideoProcessor(size=_SQUARE),
        image_seq_length=4,
        chat_template=chat,
    )


_SPLIT: Any = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def _idefics3(tokenizer: Any, chat: str) -> Any:
    pictures = transformers.Idefics3ImageProcessor(**_SPLIT)
    return transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=chat)


def _smolvlm(tokenizer: Any, chat: str) -> Any:
    """Needs num2words, or a stand-in for it, which spells the number of a video's frames."""
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**_SPLIT),
        tokenizer,
        transformers.SmolVLMVideoProcessor(**_SPLIT),
        image_seq_len=4,
        chat_template=chat,
    )


_SQUARES = {"llava_onevision": _onevision, "internvl": _internvl, "idefics3": _idefics3, "smolvlm": _smolvlm}


def save_tiny_vlm(folder: Path, kind: str = "llava", *, seed: int = 0, ends: bool = True) -> Path:
    """A normal ``save_pretrained`` folder with weights in float32 and a processor."""
    tiny_vlm(kind, seed=seed, dtype=torch.float32).save_pretrained(folder)
    tiny_processor(kind, ends=ends).save_pretrained(folder)
    return folder
