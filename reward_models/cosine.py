"""Rewards of the form f(cosine of prompt and picture): CLIPScore, PickScore, HPSv2, Social Reward, plain CLIP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from reward_models.clip_towers import ClipTowers
from reward_models.pixels import Preprocess
from reward_models.tokens import ClipTokens, FolderTokens


@dataclass
class CosineReward:
    """score = outcome(s * cos(text(prefix + prompt), image(picture))), s = exp(logit_scale) with ``logits``, else 1.

    ``prefix`` stands before every prompt and takes its tokens from the limit. ``batch_size``: pictures encoded at once.
    """

    name: str
    scale: str
    version: str
    licence: str
    source: str
    towers: ClipTowers
    logits: bool = False
    outcome: Callable[[Tensor], Tensor] | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    tokens: ClipTokens | FolderTokens = field(default_factory=ClipTokens)
    prefix: str = ""
    batch_size: int = 32
    prompt_limit: int | None = field(init=False)
    backbone: str = field(init=False)

    def __post_init__(self) -> None:
        # Start and end of text take two places, the prefix some more.
        self.prompt_limit = self.tokens.context - 2 - self.tokens.lengths([self.prefix])[0]
        # Rewards of one backbone see a picture alike: same image tower, same preprocessing.
        self.backbone = f"{self.towers.identity} {self.preprocess}"

    def prompt_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt; what is beyond ``prompt_limit`` does not count."""
        return self.tokens.lengths(prompts)

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> Float[Tensor, " batch"]:
        """Scores of PIL pictures, ``batch_size`` at a time."""
        check_lengths(prompts, images)
        with torch.no_grad():
            return self.score_embedded(prompts, self.embed(images))

    def score_tensor(
        self, prompts: Sequence[str], images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, " batch"]:
        """Scores of pictures with values in 0..1; gradients reach the pixels."""
        check_lengths(prompts, images)
        return self.score_embedded(prompts, self.towers.embed_tensor(images, self.preprocess))

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch width"]:
        """Image features, not normalised."""
        return self.towers.embed(images, self.preprocess, self.batch_size)

    def score_embedded(self, prompts: Sequence[str], embedded: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Scores of embedded pictures. A prompt that several pictures share is encoded once."""
        check_lengths(prompts, embedded)
        if not prompts:
            return embedded.new_zeros(0)
        cosine = (self.embed_prompts(prompts) * normalize(embedded, dim=-1)).sum(-1)
        score = self.towers.scale * cosine if self.logits else cosine
        return score if self.outcome is None else self.outcome(score)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "batch width"]:
        """Text features of length 1; at least one prompt."""
        unique = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        places = torch.tensor([unique[prompt] for prompt in prompts], device=self.towers.device)
        with torch.no_grad():
            ids = self.tokens([self.prefix + prompt for prompt in unique]).split(self.batch_size)
            texts = normalize(torch.cat([self.towers.text_features(chunk) for chunk in ids]), dim=-1)
        return texts[places]


def in_batches(
    score: Callable[[Sequence[str], Sequence[Image.Image]], Tensor],
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    size: int,
    device: torch.device,
) -> Float[Tensor, " batch"]:
    """``score`` of at most ``size`` pairs at a time, joined; ValueError where prompts and pictures do not match."""
    check_lengths(prompts, images)
    starts = range(0, len(images), size)
    scores = [score(prompts[start : start + size], images[start : start + size]) for start in starts]
    return torch.cat([torch.zeros(0, device=device), *scores])


def check_lengths(prompts: Sequence[str], images: Sequence[Image.Image] | Tensor) -> None:
    """ValueError where there is not one picture for each prompt."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list with one prompt for each picture")
    if len(prompts) != len(images):
        raise ValueError(f"got {len(prompts)} prompts and {len(images)} pictures; give one prompt for each picture")
