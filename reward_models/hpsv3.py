"""HPSv3 = mean of a Gaussian reward: Qwen2-VL's state at a reward token under a perceptron; arXiv 2508.03789.

MizzenAI/HPSv3, hpsv3/model/qwen2vl_trainer.py and hpsv3/inference.py: Qwen2-VL 7B reads one picture, scaled to about
256 x 28 x 28 pixels, and an instruction around the prompt that ends with the token ``<|Reward|>``; hidden-1024-16-2 on
that token's last state gives mean and log of the standard deviation. Its forward hands embeddings to the language model
without positions, so tokens of the picture are numbered one after the other like words, not by row and column as in
Qwen2-VL itself; the weights were trained so, and are used so here.
"""

import ast
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from mmalign.data.decoding import upright_rgb
from reward_models.cosine import check_lengths
from reward_models.weights import Source, build, fill, find_device, find_dtype, locate, read_state

SOURCE = Source("MizzenAI/HPSv3", ("HPSv3.safetensors",), "see the model card of MizzenAI/HPSv3")
BACKBONE = Source(
    "Qwen/Qwen2-VL-7B-Instruct",
    (
        "config.json",
        "preprocessor_config.json|processor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "chat_template.jinja|chat_template.json",
    ),
    "Apache-2.0",
)
# hpsv3/dataset/data_collator_qwen.py holds the instruction's two parts, which belong to the model as its weights do.
INSTRUCTION_FILE = "data_collator_qwen.py"
INSTRUCTION_PARTS = ("INSTRUCTION", "prompt_with_special_token")
PLACE = "{text_prompt}"
REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
# The language model's own output layer lies in the file and takes no part in the score.
UNUSED = ("lm_head.",)


class _Network(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.model = Qwen2VLModel(config)
        hidden = config.text_config.hidden_size
        self.rm_head = nn.Sequential(
            nn.Linear(hidden, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        )
        # Frequencies of the rotary positions are in no file: computed, wherever the rest is built.
        with torch.device("cpu"):
            inner: Any = self.model
            inner.visual.rotary_pos_emb = type(inner.visual.rotary_pos_emb)(config.vision_config)
            inner.language_model.rotary_emb = type(inner.language_model.rotary_emb)(config=config.text_config)

    def forward(self, inputs: Mapping[str, Tensor], reward_token: int) -> Float[Tensor, "batch 2"]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        model: Any = self.model
        embedded = model.language_model.embed_tokens(ids)
        seen: Any = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        shown = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(shown, torch.cat(list(seen.pooler_output)).to(embedded.dtype))
        places = (mask.cumsum(dim=-1) - 1).clamp(min=0).expand(3, -1, -1)
        outputs = model.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=places, use_cache=False
        )
        return self.rm_head(outputs.last_hidden_state[ids == reward_token].float())


class HPSv3:
    """HPSv3 in batches. ``weights``: HPSv3.safetensors or its folder; ``backbone``: a folder with Qwen2-VL's
    configuration and processor; ``instruction``: the text around the prompt, with ``{text_prompt}`` where it goes.

    Without ``instruction``, its text is read from the model's own code: ``data_collator_qwen.py`` beside the weights,
    or in the installed package ``hpsv3``. ValueError where a file or the text is missing.
    """

    name = "hpsv3"
    scale = "mean of a Gaussian reward, unbounded, about -1 to 15; sigma of a difference is a preference's probability"
    prompt_limit: int | None = None
    version = "v3"
    licence = SOURCE.licence
    source = SOURCE.repository

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        backbone: str | Path | None = None,
        instruction: str | None = None,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
    ) -> None:
        (file,) = locate(SOURCE, self.name, weights)
        folder = locate(BACKBONE, self.name, backbone)[0].parent
        self.instruction = _checked(instruction or read_instruction(file.parent))
        self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="right")
        self.processor.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD_TOKEN]})
        self.reward_token = self.processor.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        config: Any = Qwen2VLConfig.from_pretrained(folder)
        config.text_config.vocab_size = len(self.processor.tokenizer)  # the published weights were cut to it
        self.device, self.dtype, self.batch_size = find_device(device), find_dtype(dtype), batch_size
        network = build(lambda: _Network(config))
        fill(network, translated(read_state(file)), str(file), dtype=dtype, device=self.device)
        network.get_submodule("rm_head").float()
        self.network = network.to(self.device)
        self.step = config.vision_config.patch_size * config.vision_config.spatial_merge_size

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Means of PIL pictures, ``batch_size`` at a time."""
        return self.gaussian(prompts, images)[:, 0]

    def gaussian(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, "batch 2"]:
        """Mean and standard deviation of each picture's reward."""
        check_lengths(prompts, images)
        starts = range(0, len(images), self.batch_size)
        with torch.no_grad():
            found = [self._raw(prompts[i : i + self.batch_size], images[i : i + self.batch_size]) for i in starts]
        raw = torch.cat([torch.zeros(0, 2, device=self.device), *found])
        return torch.stack([raw[:, 0], raw[:, 1].exp()], dim=1)

    def _raw(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, "batch 2"]:
        asked = [self.instruction.replace(PLACE, prompt) for prompt in prompts]
        turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in asked]
        texts = [self.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
        pictures = [self._scaled(image) for image in images]
        made = self.processor(text=texts, images=pictures, padding=True, return_tensors="pt").to(self.device)
        marked = (made["input_ids"] == self.reward_token).sum(dim=-1).tolist()
        if set(marked) != {1}:
            raise ValueError(f"a prompt holds {REWARD_TOKEN}, which stands for the reward itself; take it out")
        return self.network({**made, "pixel_values": made["pixel_values"].to(self.dtype)}, self.reward_token)

    def _scaled(self, image: Image.Image) -> Image.Image:
        """About ``PIXELS`` pixels, sides that are multiples of a patch of patches, bicubic (hpsv3/dataset/utils.py)."""
        picture = upright_rgb(image)
        height, width = smart_resize(picture.height, picture.width, self.step, PIXELS, PIXELS)
        return picture.resize((width, height), Image.Resampling.BICUBIC)


def read_instruction(folder: Path) -> str:
    """The instruction and the line with the reward token, read, not run, from the model's published code."""
    package = find_spec("hpsv3")
    roots = [
        folder,
        *(Path(place) / "dataset" for place in (package.submodule_search_locations or () if package else ())),
    ]
    for file in (root / INSTRUCTION_FILE for root in roots):
        if not file.is_file():
            continue
        values = {
            target.id: node.value.value
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        missing = [name for name in INSTRUCTION_PARTS if not isinstance(values.get(name), str)]
        if missing:
            raise ValueError(f"{file} holds no text {' and no text '.join(missing)}; take the file of MizzenAI/HPSv3")
        return "".join(str(values[name]) for name in INSTRUCTION_PARTS)
    raise ValueError(
        f"reward 'hpsv3' needs the instruction that it was trained with, which is part of its code: put "
        f"hpsv3/dataset/{INSTRUCTION_FILE} of github.com/MizzenAI/HPSv3 into {folder}, or pass instruction=TEXT"
    )


def _checked(instruction: str) -> str:
    if instruction.count(PLACE) != 1 or instruction.count(REWARD_TOKEN) != 1:
        raise ValueError(f"the instruction must hold {PLACE} and {REWARD_TOKEN} once each")
    return instruction


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published key names to those of Qwen2VLModel. Older ones (transformers below 4.52) say ``visual.`` and ``model.``
    for what are ``model.visual.`` and ``model.language_model.``; newer ones pass as they are."""
    older = any(name.startswith("visual.") for name in state)
    renamed = {}
    for name, value in state.items():
        if name.startswith(UNUSED):
            continue
        if older and name.startswith("visual."):
            name = "model." + name
        elif older and name.startswith("model."):
            name = "model.language_model." + name.removeprefix("model.")
        renamed[name] = value
    return renamed
