"""The network that is trained: a CLIP and a head that give a score to a prompt and each of its pictures."""

import math
from collections.abc import Container, Mapping
from inspect import signature
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from mmalign.losses import Objective
from mmalign.training.config import HEAD_SETTINGS, HeadConfig, LoRAConfig, RewardConfig
from reward_models.clip_folder import ClipFolder
from reward_models.heads import COSINE, OF_USERS, READ_LOGITS, build_head, nobody
from reward_models.heads.scores import MultiHead
from reward_models.losses import gpm
from reward_models.weights import build, fill, read_state

LARGEST_SCALE = 100.0
POLICY = "policy"
GPM_TAU = signature(gpm).parameters["tau"].default


class ClipScorer(nn.Module):
    """head(text, pictures, exp(logit_scale) * cos(text, picture)), float32."""

    def __init__(self, clip: CLIPModel, head: nn.Module) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        pixels: Float[Tensor, "batch k 3 side side"],
        users: Int[Tensor, " batch"] | None = None,
    ) -> dict[str, Tensor]:
        """What the head gives for k pictures of each prompt: ``score`` [batch, k] and more (``reward_models.heads``).

        ``users``: numbers of users, -1 for nobody in particular. First, ``logit_scale`` is cut to ln 100, where a step
        left it above; HPSv2 and open_clip do so after the step, which no forward can tell apart.
        """
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(LARGEST_SCALE))
        clip: Any = self.clip
        text = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)
        text, image = normalize(text.float(), dim=-1), self.image_features(pixels.flatten(0, 1))
        image = image.unflatten(0, pixels.shape[:2])
        logits = self.clip.logit_scale.float().exp() * (text[:, None] * image).sum(dim=-1)
        return self.head(text, image, logits, nobody(len(ids), ids.device) if users is None else users)

    def image_features(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch width"]:
        """Projected features of length 1."""
        clip: Any = self.clip
        return normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output).float(), dim=-1)

    def enable_gradient_checkpointing(self) -> None:
        """Compute activations of the transformer layers again in the backward pass."""
        self.clip.gradient_checkpointing_enable({"use_reentrant": False})


def asked(objective: Objective) -> frozenset[str]:
    """Every tensor that some term asks for."""
    return frozenset(name for term in objective.terms for name in term.signature.tensors)


def head_settings(head: HeadConfig, objective: Objective, users: int) -> dict[str, Any]:
    """Keywords of ``build_head``. A ``gpm`` head has the tau of its objective's ``gpm`` terms."""
    settings: dict[str, Any] = {"kind": head.kind}
    settings |= {name: getattr(head, name) for name in HEAD_SETTINGS[head.kind]}
    if head.kind in OF_USERS:
        settings["users"] = users
    if head.kind == "gpm":
        taus = {term.keywords.get("tau", GPM_TAU) for term in objective.terms if term.loss_name == "gpm"}
        if len(taus) > 1:
            raise ValueError(f"the gpm terms have several tau ({sorted(taus)}), and one head has one scale; give one")
        settings["tau"] = taus.pop() if taus else GPM_TAU
    return settings


def load_scorer(found: ClipFolder, head: Mapping[str, Any] = COSINE) -> ClipScorer:
    """The CLIP of a folder with every weight in its place, float32, frozen, on the CPU; a head with fresh weights."""
    clip = build(lambda: CLIPModel(found.config))
    fill(clip, read_state(found.weights), str(found.weights), dtype="float32", device=torch.device("cpu"))
    return ClipScorer(cast(CLIPModel, clip), build_head(_width(found), head))


def skeleton(found: ClipFolder, head: Mapping[str, Any] = COSINE) -> ClipScorer:
    """The same without weights."""
    clip = cast(CLIPModel, build(lambda: CLIPModel(found.config)))
    return ClipScorer(clip, build(lambda: build_head(_width(found), head)))


def make_trainable(
    scorer: ClipScorer, lora: LoRAConfig | None, reward: RewardConfig, asks: Container[str] = ()
) -> tuple[int, int]:
    """Freeze what is not trained, add LoRA where asked; gives numbers of trained and of all parameters.

    ``logit_scale`` is trained wherever a score depends on it, weights by uncertainty where a loss ``asks`` for them,
    and the rest of the head always. ValueError for layers that do not exist.
    """
    total = sum(value.numel() for value in scorer.parameters())
    clip: Any = scorer.clip
    clip.requires_grad_(False)
    if lora is not None:
        _add_lora(clip, lora)
    else:
        _unlock(clip.text_model, clip.text_projection, "final_layer_norm", reward.text_layers, "reward.text_layers")
        _unlock(clip.vision_model, clip.visual_projection, "post_layernorm", reward.image_layers, "reward.image_layers")
    clip.logit_scale.requires_grad_(reward.head.kind in READ_LOGITS)
    if isinstance(scorer.head, MultiHead):
        scorer.head.log_variance.requires_grad_("part_log_variance" in asks)
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


def _width(found: ClipFolder) -> int:
    return cast(Any, found.config).projection_dim


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
