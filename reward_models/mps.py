"""MPS = exp(logit_scale) * cos(E_text(prompt), CLS of the picture fused with the prompt); arXiv 2405.14705.

Kwai-Kolors/MPS (MIT), trainer/models/clip_model.py and eval_overall_mps_on_hpdv2.py: a CLIP
ViT-H/14 and four layers in which picture tokens attend to those prompt tokens that resemble a condition, a list of
words. The similarity is divided by its maximum and compared with a threshold. Published code disagrees with itself on
that: 0.01 in the model, 0.3 in the evaluation; and its maximum is taken over the batch, so that a score depends on what
else is in it. Here the maximum is each prompt's own. The evaluation scores one prompt at a time, where both are the
same, so its numbers are those of the defaults; ``maximum="batch"`` is the model's own rule.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel

from reward_models.cosine import check_lengths, in_batches
from reward_models.fusion import Fusion
from reward_models.pixels import Preprocess
from reward_models.tokens import CONTEXT, END, ClipTokens
from reward_models.weights import Source, build, fill, find_device, locate, read_state

FILE = "MPS_overall_state.pt"
CONVERT = (
    "in an environment you can throw away, with the MPS repository on the path: torch.save(torch.load("
    f"'MPS_overall_checkpoint.pth', weights_only=False).state_dict(), '{FILE}')"
)
SOURCE = Source(
    "Kwai-Kolors/MPS",
    (FILE,),
    "MIT",
    page=f"get MPS_overall_checkpoint.pth by the link in the README of github.com/Kwai-Kolors/MPS, then {CONVERT}",
)
CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
# laion/CLIP-ViT-H-14-laion2B-s32B-b79K, config.json.
VIT_H_14: Mapping[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "eos_token_id": END,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
    },
}


class _Network(nn.Module):
    def __init__(self, architecture: Mapping[str, Any], layers: int, heads: int) -> None:
        super().__init__()
        self.model = CLIPModel(CLIPConfig(**architecture))
        self.cross_model = Fusion(architecture["projection_dim"], layers, heads)

    def words(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected states of all tokens [batch, 77, width] and of the end of text [batch, width]."""
        made = self.model.text_model(input_ids=ids)
        return self.model.text_projection(made.last_hidden_state), self.model.text_projection(made.pooler_output)

    def patches(self, pixels: Tensor) -> Tensor:
        """Projected states of class token and patches, without the final norm, as published."""
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).last_hidden_state)


class MPS:
    """MPS, head "overall", the only one published.

    ``threshold``: prompt tokens whose similarity to the condition is above it times the maximum are attended to.
    """

    name = "mps"
    prompt_limit: int | None = CONTEXT - 2
    scale = "logit: exp(logit_scale) * cosine, about 0 to 20"
    licence = SOURCE.licence
    source = SOURCE.repository

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
        condition: str = CONDITION,
        threshold: float = 0.3,
        maximum: Literal["prompt", "batch"] = "prompt",
        architecture: Mapping[str, Any] = VIT_H_14,
        layers: int = 4,
        heads: int = 16,
    ) -> None:
        if maximum not in ("prompt", "batch"):
            raise ValueError(f"maximum={maximum!r}; choose prompt (a score of its own) or batch (the model's own rule)")
        (file,) = locate(SOURCE, self.name, weights)
        self.version = f"overall, threshold {threshold:g}, maximum of the {maximum}"
        if condition != CONDITION:
            self.version += f", condition {condition!r}"
        self.device, self.batch_size = find_device(device), batch_size
        self.condition, self.threshold, self.maximum = condition, threshold, maximum
        self.tokens = ClipTokens(cleaning="transformers", pad=END)
        self.preprocess = Preprocess(architecture["vision_config"]["image_size"], corner="transformers")
        network = build(lambda: _Network(architecture, layers, heads))
        fill(network, read_state(file, convert=CONVERT), str(file), dtype=dtype, device=self.device)
        assert isinstance(network, _Network)
        self.network, self.dtype = network, next(network.parameters()).dtype

    def prompt_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt; what is beyond ``prompt_limit`` does not count."""
        return self.tokens.lengths(prompts)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Scores of PIL pictures, ``batch_size`` at a time (with ``maximum="batch"`` they depend on it)."""
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

    def seen(self, words: Float[Tensor, "batch 77 width"]) -> Bool[Tensor, "batch 77"]:
        """Which prompt tokens resemble the condition: max_j <word, condition_j> / maximum > threshold."""
        condition, _ = self.network.words(self.tokens([self.condition]).to(self.device))
        similar = (words @ condition[0].T).amax(-1)
        largest = similar.amax() if self.maximum == "batch" else similar.amax(-1, keepdim=True)
        return similar / largest > self.threshold

    def _scores(self, prompts: Sequence[str], pixels: Tensor) -> Tensor:
        with torch.no_grad():
            words, text = self.network.words(self.tokens(prompts).to(self.device))
            seen = self.seen(words)
        fused = self.network.cross_model(self.network.patches(pixels.to(self.device, self.dtype)), words, seen)
        cosine = (normalize(text.float(), dim=-1) * normalize(fused[:, 0].float(), dim=-1)).sum(-1)
        return self.network.model.logit_scale.float().exp() * cosine
