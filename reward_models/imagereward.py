"""ImageReward v1.0 = (MLP(text encoder's CLS state, attending to the picture) - 0.16717) / 1.03334; arXiv 2304.05977.

THUDM/ImageReward (Apache-2.0), ImageReward/ImageReward.py: BLIP's ViT-L/16 at 224 px and its BERT-base with
cross-attention, then five linear layers without activation. Built here from transformers' Blip classes; the published
key names are translated. Prompts are cut at 35 BERT tokens, start and separator included: the model never saw more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from reward_models.aesthetic import linear_head
from reward_models.cosine import check_lengths, in_batches
from reward_models.pixels import Preprocess
from reward_models.weights import Source, build, fill, find_device, locate, read_state

SOURCE = Source("THUDM/ImageReward", ("ImageReward.pt",), "Apache-2.0")
VOCABULARY = Source(
    "google-bert/bert-base-uncased",
    ("vocab.txt",),
    "Apache-2.0",
    sha256={"vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"},
)
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
# med_config.json of the repository and create_vit("large") of models/BLIP/blip.py.
VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
TEXT: Mapping[str, Any] = {
    "vocab_size": 30524,  # BERT's 30522, [DEC] and [ENC]
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
# BLIP's contrastive heads and the queue of its training lie in the file and take no part in the score.
UNUSED = ("blip.vision_proj.", "blip.text_proj.")
_RENAMED_VISION = (
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("blocks.", "encoder.layers."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
)


class _Network(nn.Module):
    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
        super().__init__()
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        # is_decoder creates the cross-attention; the forward call then runs it as an encoder, unmasked.
        config = BlipTextConfig(**text, encoder_hidden_size=vision["hidden_size"], is_decoder=True)
        self.text = BlipTextModel(config, add_pooling_layer=False)
        self.layers = linear_head(text["hidden_size"])

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        tokens = self.vision(pixel_values=pixels).last_hidden_state
        states = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens, is_decoder=False
        ).last_hidden_state
        return self.layers(states[:, 0])[:, 0].float()


class ImageReward:
    """ImageReward v1.0 in batches; the official code runs picture by picture."""

    name = "imagereward"
    scale = "standardised: mean 0 and variance 1 on its data, about -2 to 2"
    prompt_limit: int | None = MAX_TOKENS - 2
    version = "v1.0"
    licence = SOURCE.licence
    source = SOURCE.repository

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        vocabulary: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
        vision: Mapping[str, Any] = VISION,
        text: Mapping[str, Any] = TEXT,
    ) -> None:
        """``weights``: ImageReward.pt; ``vocabulary``: BERT's vocab.txt; ``vision``, ``text``: its architecture."""
        (file,) = locate(SOURCE, self.name, weights)
        if vocabulary is None and weights is not None and (Path(weights) / VOCABULARY.folder).is_dir():
            vocabulary = weights
        (words,) = locate(VOCABULARY, self.name, vocabulary)
        self.tokenizer = BertTokenizer(vocab=str(words), do_lower_case=True)
        self.device, self.batch_size = find_device(device), batch_size
        self.preprocess = Preprocess(vision["image_size"])
        self.network = build(lambda: _Network(vision, text))
        fill(self.network, _translated(read_state(file)), str(file), dtype=dtype, device=self.device)
        self.dtype = next(self.network.parameters()).dtype

    def prompt_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt; what is beyond ``prompt_limit`` does not count."""
        return [len(self.tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Scores of PIL pictures, ``batch_size`` at a time."""
        with torch.no_grad():
            return in_batches(self._scores_of_pictures, prompts, images, self.batch_size, self.device)

    def _scores_of_pictures(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        return self._scores(prompts, self.preprocess.pictures(images))

    def score_tensor(
        self, prompts: Sequence[str], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Scores of pictures with values in 0..1; gradients reach the pixels."""
        check_lengths(prompts, images)
        return self._scores(prompts, self.preprocess.tensor(images))

    def tokens(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "batch 35"], Int[Tensor, "batch 35"]]:
        """Ids and mask, padded and cut to 35."""
        made = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        return made.input_ids, made.attention_mask

    def _scores(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        ids, mask = self.tokens(prompts)
        raw = self.network(ids.to(self.device), mask.to(self.device), pixels.to(self.device, self.dtype))
        return (raw - MEAN) / STD


def _translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published key names to those of transformers' Blip classes."""
    translated = {}
    for name, value in state.items():
        if name.startswith("blip.visual_encoder."):
            name = name.removeprefix("blip.visual_encoder.")
            name = "post_layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name
            for published, ours in _RENAMED_VISION:
                name = name.replace(published, ours)
            name = "vision." + name
        elif name.startswith("blip.text_encoder."):
            name = "text." + name.removeprefix("blip.text_encoder.")
        elif name.startswith("mlp.layers."):
            name = name.removeprefix("mlp.")
        elif name.startswith(UNUSED):
            continue
        translated[name] = value
    return translated
