"""The network that is trained: a CLIP that gives a score to a prompt and each of its pictures."""

import math
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from mmalign.training.config import LoRAConfig, RewardConfig
from reward_models.clip_folder import ClipFolder
from reward_models.weights import build, fill, read_state

LARGEST_SCALE = 100.0
POLICY = "policy"


class ClipScorer(nn.Module):
    """score = exp(logit_scale) * cos(text, picture), float32."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(
        self, ids: Int[Tensor, "batch tokens"], pixels: Float[Tensor, "batch k 3 side side"]
    ) -> Float[Tensor, "batch k"]:
        """Scores of the k pictures of each prompt. First, ``logit_scale`` is cut to ln 100, where a step left it above;
        HPSv2 and open_clip do so after the step, which no forward can tell apart."""
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        clip: Any = self.clip
        text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        image = clip.visual_projection(clip.vision_model(pixel_values=pixels.flatten(0, 1)).pooler_output)
        text, image = normalize(text.float(), dim=-1), normalize(image.float(), dim=-1)
        return self.clip.logit_scale.float().exp() * (text[:, None] * image.unflatten(0, pixels.shape[:2])).sum(dim=-1)

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations of the transformer layers again in the backward pass."""
        self.clip.gradient_checkpointing_enable({"use_reentrant": False})


def load_scorer(found: ClipFolder) -> ClipScorer:
    """The CLIP of a folder with every weight in its place, float32, frozen, on the CPU."""
    clip = build(lambda: CLIPModel(found.config))
    fill(clip, read_state(found.weights), str(found.weights), dtype="float32", device=torch.device("cpu"))
    return ClipScorer(cast(CLIPModel, clip))


def skeleton(found: ClipFolder) -> ClipScorer:
    """The same without weights."""
    return ClipScorer(cast(CLIPModel, build(lambda: CLIPModel(found.config))))


def make_trainable(scorer: ClipScorer, lora: LoRAConfig | None, reward: RewardConfig) -> tuple[int, int]:
    """Freeze what is not trained, add LoRA where asked; gives numbers of trained and of all parameters.

    ``logit_scale`` is always trained. ValueError for layers that do not exist.
    """
    total = sum(value.numel() for value in scorer.parameters())
    clip: Any = scorer.clip
    clip.requires_grad_(False)
    if lora is not None:
        _add_lora(clip, lora)
    else:
        _unlock(clip.text_model, clip.text_projection, "final_layer_norm", reward.text_layers, "reward.text_layers")
        _unlock(clip.vision_model, clip.visual_projection, "post_layernorm", reward.image_layers, "reward.image_layers")
    clip.logit_scale.requires_grad_(True)
    return sum(value.numel() for value in scorer.parameters() if value.requires_grad), total


def merged_state(scorer: ClipScorer) -> dict[str, Tensor]:
    """The weights by the names of a plain CLIPModel, LoRA added in; the scorer stays as it is."""
    layers = [module for module in scorer.clip.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        cast(Any, layer).merge(safe_merge=True)
    try:
        return {
            name.replace(".base_layer.", "."): value.detach().cpu().clone().contiguous()
            for name, value in scorer.clip.state_dict().items()
            if ".lora_" not in name
        }
    finally:
        for layer in layers:
            cast(Any, layer).unmerge()


def _unlock(tower: Any, projection: nn.Module, norm: str, layers: int | None, setting: str) -> None:
    if layers is None:
        tower.requires_grad_(True)
        projection.requires_grad_(True)
        return
    blocks = tower.encoder.layers
    if layers > len(blocks):
        raise ValueError(f"{setting}: {layers}, but that tower has {len(blocks)} layers; null trains all of it")
    if layers:
        for part in (*blocks[len(blocks) - layers :], getattr(tower, norm), projection):
            part.requires_grad_(True)


def _add_lora(clip: nn.Module, lora: LoRAConfig) -> None:
    names = [name for name, module in clip.named_modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding)]
    unknown = [to for to in lora.targets if not any(name == to or name.endswith(f".{to}") for name in names)]
    if unknown:
        endings = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ValueError(
            f"model.lora.targets: {', '.join(unknown)} matches no layer of a CLIP. Layer names end in: "
            f"{', '.join(endings)}"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float works
        target_modules=list(lora.targets),
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, clip, adapter_name=POLICY)
    for name, value in clip.named_parameters():
        value.requires_grad_(".lora_" in name)
