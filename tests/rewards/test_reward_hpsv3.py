"""HPSv3 at tiny size, in the published key layout: what it reads, what its numbers are, and how it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmalign.rewards import RewardModel, find_reward
from reward_models.hpsv3 import PIXELS, REWARD_TOKEN, _Network, read_instruction
from tests.vlm.tiny_processors import tiny_processor
from tests.vlm.tiny_vlms import config_of

CODE = (
    'import torch\nINSTRUCTION = """Judge: {text_prompt}."""\nprompt_with_special_token = """\\nTell: <|Reward|>"""\n'
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, configuration, processor and code, as published but tiny."""
    place = tmp_path_factory.mktemp("hpsv3")
    processor, config = tiny_processor("qwen2_vl"), config_of("qwen2_vl")
    config.text_config.vocab_size = len(processor.tokenizer) + 1
    torch.manual_seed(0)
    network = _Network(config)
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim > 1:
                value.normal_(std=0.2)
    state = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value.clone()
        for name, value in network.state_dict().items()
    }
    state["lm_head.weight"] = torch.zeros(config.text_config.vocab_size, config.text_config.hidden_size)
    save_file(state, place / "HPSv3.safetensors")
    config.save_pretrained(place)
    processor.save_pretrained(place)
    (place / "data_collator_qwen.py").write_text(CODE)
    return place


def open_reward(folder: Path, **more: object) -> Any:
    return find_reward("hpsv3", weights=folder, backbone=folder, device="cpu", dtype="float32", **more)


def picture(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PROMPTS = ["a cat", "a very long story about a dog {and} its bone", "a cat"]
PICTURES = [picture(40, 24, 0), picture(16, 48, 1), picture(40, 24, 2)]


def test_a_batch_is_its_rows_and_the_score_is_the_mean(folder: Path) -> None:
    reward = open_reward(folder, batch_size=2)
    assert isinstance(reward, RewardModel)
    both = reward.gaussian(PROMPTS, PICTURES)
    assert torch.equal(reward.score(PROMPTS, PICTURES), both[:, 0])
    assert (both[:, 1] > 0).all()
    assert both[:, 0].unique().numel() == 3
    alone = torch.cat([reward.gaussian([prompt], [image]) for prompt, image in zip(PROMPTS, PICTURES, strict=True)])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
    assert reward.score([], []).shape == (0,)


def test_it_is_the_state_of_the_reward_token_with_tokens_numbered_one_after_the_other(folder: Path) -> None:
    reward = open_reward(folder)
    text = reward.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Judge: a cat.\nTell: <|Reward|>"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    made = reward.processor(text=[text], images=[reward._scaled(PICTURES[0])], return_tensors="pt")
    inner = reward.network.model
    embedded = inner.language_model.embed_tokens(made["input_ids"])
    shown = made["input_ids"] == inner.config.image_token_id
    embedded[shown] = inner.visual(made["pixel_values"], grid_thw=made["image_grid_thw"]).pooler_output
    states = inner.language_model(inputs_embeds=embedded).last_hidden_state  # positions 0, 1, 2, ...
    place = made["input_ids"][0].tolist().index(reward.processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
    raw = reward.network.rm_head(states[0, place])
    torch.testing.assert_close(reward.gaussian(["a cat"], PICTURES[:1])[0], torch.stack([raw[0], raw[1].exp()]))
    by_row_and_column = inner(**{key: made[key] for key in made if key != "mm_token_type_ids"}, **_types(made))
    assert not torch.allclose(by_row_and_column.last_hidden_state[0, place], states[0, place], atol=1e-3)


def _types(made: Any) -> dict[str, Any]:
    return {"mm_token_type_ids": made["mm_token_type_ids"]} if "mm_token_type_ids" in made else {}


def test_pictures_are_scaled_to_one_area(folder: Path) -> None:
    reward = open_reward(folder)
    for size in ((512, 512), (1024, 300), (20, 30)):
        scaled = reward._scaled(picture(*size, seed=3))
        assert scaled.width % reward.step == scaled.height % reward.step == 0
        assert scaled.width * scaled.height == pytest.approx(PIXELS, rel=0.05)


def test_what_is_missing_or_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "HPSv3.safetensors").symlink_to(folder / "HPSv3.safetensors")
    with pytest.raises(ValueError, match=r"put hpsv3/dataset/data_collator_qwen\.py"):
        find_reward("hpsv3", weights=tmp_path, backbone=folder)
    with pytest.raises(ValueError, match="must hold"):
        find_reward("hpsv3", weights=tmp_path, backbone=folder, instruction="Judge this.")
    (tmp_path / "data_collator_qwen.py").write_text("INSTRUCTION = 'Judge: {text_prompt}.'\n")
    with pytest.raises(ValueError, match="holds no text prompt_with_special_token"):
        read_instruction(tmp_path)
    with pytest.raises(ValueError, match="stands for the reward itself"):
        open_reward(folder).score(["a <|Reward|>"], PICTURES[:1])
    state = load_file(folder / "HPSv3.safetensors")
    del state["rm_head.5.bias"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(rm_head\.5\.bias\)"):
        find_reward(
            "hpsv3",
            weights=tmp_path / "other.safetensors",
            backbone=folder,
            instruction=f"{{text_prompt}}{REWARD_TOKEN}",
        )
