"""The full-size classes, without memory, against every key and shape of the published definitions."""

import pytest
import torch
from open_clip.model import CLIP
from torch import nn
from transformers import CLIPConfig, CLIPModel, Qwen2VLConfig

from reward_models import hpsv3
from reward_models.aesthetic import linear_head
from reward_models.hps import VIT_H_14 as HPS_ARCHITECTURE
from reward_models.imagereward import TEXT, UNUSED, VISION, _Network, _translated
from reward_models.mps import VIT_H_14
from reward_models.mps import _Network as MPSNetwork
from reward_models.social import VIT_L_14
from reward_models.weights import build
from tests.rewards import published_layouts as published


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


# config.json of the repositories: text width, layers, image width, layers, patch, joint width.
PUBLISHED_CLIPS = {
    "openai/clip-vit-base-patch32": (512, 12, 768, 12, 32, 512),
    "openai/clip-vit-large-patch14": (768, 12, 1024, 24, 14, 768),
    "yuvalkirstain/PickScore_v1": (1024, 24, 1280, 32, 14, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED_CLIPS)
def test_clips_of_transformers(name):
    text, text_layers, image, image_layers, patch, joint = sizes = PUBLISHED_CLIPS[name]
    heads = 16 if image == 1280 else image // 64
    config = CLIPConfig(
        projection_dim=joint,
        text_config={
            "hidden_size": text,
            "num_hidden_layers": text_layers,
            "intermediate_size": 4 * text,
            "num_attention_heads": text // 64,
        },
        vision_config={
            "hidden_size": image,
            "num_hidden_layers": image_layers,
            "intermediate_size": 4 * image,
            "num_attention_heads": heads,
            "patch_size": patch,
        },
    )
    assert shapes_of(build(lambda: CLIPModel(config))) == published.transformers_clip(*sizes)


def test_hps():
    expected = published.open_clip_vit(*PUBLISHED_CLIPS["yuvalkirstain/PickScore_v1"])
    assert shapes_of(build(lambda: CLIP(**HPS_ARCHITECTURE))) == expected


def test_social_reward():
    expected = published.open_clip_vit(*PUBLISHED_CLIPS["openai/clip-vit-large-patch14"])
    assert shapes_of(build(lambda: CLIP(**VIT_L_14))) == expected


def test_aesthetic_head():
    head = build(lambda: nn.ModuleDict({"layers": linear_head(768)}))
    assert shapes_of(head) == published.five_linears("", 768)


def test_imagereward():
    expected = published.imagereward(1024, 24, 768, 12, 30524)
    translated = _translated({name: torch.empty(shape, device="meta") for name, shape in expected.items()})
    assert translated.pop("text.embeddings.position_ids").shape == (1, 512)
    ours = shapes_of(build(lambda: _Network(VISION, TEXT)))
    assert {name: tuple(value.shape) for name, value in translated.items()} == ours
    assert len(translated) == len(expected) - 1 - sum(name.startswith(UNUSED) for name in expected)


def test_hpsv3():
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 151658,  # the tokenizer's 151657 and <|Reward|>
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    )
    expected = published.hpsv3(3584, 28, 18944, 512, 151658, 1280, 32)
    translated = hpsv3.translated({name: torch.empty(shape, device="meta") for name, shape in expected.items()})
    ours = shapes_of(build(lambda: hpsv3._Network(config)))
    assert {name: tuple(value.shape) for name, value in translated.items()} == ours
    newer = {name: torch.empty(shape, device="meta") for name, shape in ours.items()}
    assert hpsv3.translated(newer).keys() == ours.keys()


def test_mps():
    expected = published.mps(
        published.transformers_clip(*PUBLISHED_CLIPS["yuvalkirstain/PickScore_v1"]), width=1024, layers=4, heads=16
    )
    del expected["model.text_model.embeddings.position_ids"]
    assert shapes_of(build(lambda: MPSNetwork(VIT_H_14, 4, 16))) == expected
