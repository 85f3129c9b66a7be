"""Pretraining of ``tiny-llava`` in three phases, as large models of its kind are made.

First the vision tower alone, on a world without habits: every patch says what it shows (the part that CLIP's
pretraining plays for LLaVA). Then the text model alone, on the words of a world with habits, from which it learns its
prior. Then projector and text model behind the frozen tower, on pictures that mostly follow the habits: the prior
answers most of what is asked there, so the picture is believed less than it deserves, and where it breaks a habit the
model says what usually is. The tower does tell what is seen: that is what alignment can bring out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.playground.pretrain.conversations import LABELS, Conversations, conversation_dataset, patch_dataset
from mmalign.playground.pretrain.frame import Plan, Progress, autocast, train
from mmalign.playground.tiny_llava import (
    BOS_ID,
    IMAGE_ID,
    IMAGE_SIZE,
    PATCH_SIZE,
    USER_ID,
    WIDTH,
    build_processor,
    build_tiny_llava,
)

_PICTURE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


@dataclass(frozen=True)
class LlavaSettings:
    """Sizes of the run. The shipped weights say theirs in ``pretrain.json``.

    ``follow``: the probability with which each habit holds in training pictures, ``text_follow`` in the words that the
    text model learns alone. ``yes_share`` of the yes-or-no questions are true, so that there is a prior for yes, too.
    ``judged_pictures``: how many of each kind the quality is measured on.
    """

    vision_images: int = 24_000
    vision_steps: int = 2400
    vision_batch: int = 64
    text_images: int = 8_000
    text_steps: int = 300
    text_follow: float = 0.95
    images: int = 16_000
    steps: int = 2000
    batch: int = 16
    follow: float = 0.85
    questions: int = 5
    yes_share: float = 0.6
    learning_rate: float = 1.5e-3
    ema_decay: float = 0.995
    precision: str = "bf16"
    judged_pictures: int = 300
    seed: int = 0


def pretrain_llava(folder: Path, settings: LlavaSettings, device: torch.device, progress: Progress) -> Any:
    """The trained model, in evaluation mode. ``vision.pt`` in ``folder`` keeps the tower for a run that continues."""
    model: Any = build_tiny_llava()
    file = folder / "vision.pt"
    model.to(device)
    tower = model.model.vision_tower
    if not file.exists():
        train_vision(tower, settings, device, progress)
        torch.save(tower.state_dict(), file)
    tower.load_state_dict(torch.load(file, weights_only=True, map_location=device))
    text = folder / "text.pt"
    if not text.exists():
        train_text(model, settings, device, progress)
        torch.save(model.model.language_model.state_dict(), text)
    model.model.language_model.load_state_dict(torch.load(text, weights_only=True, map_location=device))
    train_language(model, settings, device, progress)
    file.unlink()
    text.unlink()
    return model.eval()


def train_vision(tower: nn.Module, settings: LlavaSettings, device: torch.device, progress: Progress) -> None:
    """Sum over ``LABELS`` of the cross entropy of each patch's label; the head is thrown away."""
    pictures, labels = (part.to(device) for part in patch_dataset(settings.vision_images, settings.seed))
    model = _PatchLabels(tower).to(device)
    optimizer = _optimizer(model, settings)

    def loss_of_step(step: int) -> Tensor:
        draws = torch.Generator().manual_seed(settings.seed * 7919 + step)
        rows = torch.randint(len(pictures), (settings.vision_batch,), generator=draws).to(device)
        with autocast(device, settings.precision):
            logits = model(to_pixels(pictures[rows]))
        truth = labels[rows].long()
        if (step + 1) % 100 == 0:
            print(f"vision {step + 1} patches right: {_shares_right(logits, truth)}", flush=True)
        losses = [
            F.cross_entropy(part.float().flatten(0, 1), truth[..., index].flatten())
            for index, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    train(Plan("vision", settings.vision_steps, settings.learning_rate, 0.99), model, optimizer, loss_of_step, progress)


def train_text(model: Any, settings: LlavaSettings, device: torch.device, progress: Progress) -> None:
    """-log p(answer | question) without any picture, mean over answer tokens; only the text model learns."""
    data = _conversations(settings, settings.text_images, settings.text_follow, seed=settings.seed + 1)
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    plan = Plan("text", settings.text_steps, settings.learning_rate)
    train(plan, model, _optimizer(model, settings), _answers_of(model, data, settings, device, None), progress)


def train_language(model: Any, settings: LlavaSettings, device: torch.device, progress: Progress) -> None:
    """-log p(answer | picture, question), mean over answer tokens; the model ends with its averaged weights."""
    data = _conversations(settings, settings.images, settings.follow, seed=settings.seed)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False).eval()
    plan = Plan("language", settings.steps, settings.learning_rate, settings.ema_decay)
    pictures = data.pictures
    train(plan, model, _optimizer(model, settings), _answers_of(model, data, settings, device, pictures), progress)
    model.requires_grad_(True)


def answer_loss(model: Any, data: Conversations, rows: Tensor, pictures: Tensor | None) -> Tensor:
    """Mean cross entropy of the answers of ``rows``: ``<s> USER: <image>`` once, and all exchanges behind it.

    Without ``pictures`` ([rows, 3, side, side]) nothing stands in the place of the picture; the positions stay.
    """
    device = model.device
    features, shown = None, 0
    if pictures is not None:
        features = model.model.get_image_features(pixel_values=to_pixels(pictures.to(device)), return_dict=True)
        shown = _PICTURE_TOKENS
    head = torch.tensor([BOS_ID, USER_ID, *[IMAGE_ID] * shown]).expand(len(rows), -1)
    used = int(data.segment[rows].amax(dim=0).count_nonzero())
    tokens = torch.cat([head, data.tokens[rows, :used]], dim=1).to(device)
    segment = torch.cat([torch.zeros_like(head), data.segment[rows, :used]], dim=1)
    first = 2 + _PICTURE_TOKENS
    position = torch.cat([torch.arange(head.shape[1]).expand_as(head), first + data.position[rows, :used]], 1)
    places = {"attention_mask": _sees(segment, head.shape[1]).to(device), "position_ids": position.to(device)}
    if features is None:
        output = model.model.language_model(input_ids=tokens, use_cache=False, **places)
    else:
        output = model.model(input_ids=tokens, mm_encoder_outputs={"image": features}, use_cache=False, **places)
    is_answer = F.pad(data.is_answer[rows, :used].bool(), (head.shape[1], 0)).to(device)
    logits = model.lm_head(output.last_hidden_state[:, :-1][is_answer[:, 1:]])
    return F.cross_entropy(logits.float(), tokens[:, 1:][is_answer[:, 1:]])


def _conversations(settings: LlavaSettings, images: int, follow: float, *, seed: int) -> Conversations:
    kept = {"questions": settings.questions, "yes_share": settings.yes_share}
    return conversation_dataset(images, seed, follow=follow, **kept)


def _answers_of(
    model: Any, data: Conversations, settings: LlavaSettings, device: torch.device, pictures: Tensor | None
) -> Callable[[int], Tensor]:
    """The loss of a step: ``settings.batch`` rows drawn by seed and step."""

    def loss_of_step(step: int) -> Tensor:
        draws = torch.Generator().manual_seed(settings.seed * 7919 + step)
        rows = torch.randint(len(data.tokens), (settings.batch,), generator=draws)
        with autocast(device, settings.precision):
            return answer_loss(model, data, rows, None if pictures is None else pictures[rows])

    return loss_of_step


def to_pixels(pictures: Tensor) -> Tensor:
    """uint8 -> what the image processor makes of a 64 px picture."""
    images = build_processor().image_processor
    mean, std = (
        torch.tensor(values, device=pictures.device)[:, None, None] for values in (images.image_mean, images.image_std)
    )
    return (pictures.float() / 255 - mean) / std


def _sees(segment: Tensor, head: int) -> Tensor:
    """[rows, 1, queries, keys] bool: everything sees the ``head`` tokens before it and earlier ones of its exchange."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segment[:, :, None] == segment[:, None, :]
    in_head = (torch.arange(length) < head)[None, None, :]
    return (causal & (same | in_head))[:, None]


class _PatchLabels(nn.Module):
    """Pixels -> one tensor of logits [batch, patches, classes] per entry of ``LABELS``."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = [len(options) for options in LABELS.values()]
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(self.sizes)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        states = self.tower(pixels, output_hidden_states=True).hidden_states[-1]
        return self.head(states[:, 1:]).split(self.sizes, dim=-1)


def _shares_right(logits: tuple[Tensor, ...], truth: Tensor) -> str:
    """Of the patches with a thing, how many are told right, per label."""
    on_thing = truth[..., 0] > 0
    shares = [
        f"{name} {(part.argmax(-1) == truth[..., index])[on_thing].float().mean().item():.3f}"
        for index, (name, part) in enumerate(zip(LABELS, logits, strict=True))
    ]
    return ", ".join(shares)


def _optimizer(model: nn.Module, settings: LlavaSettings) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
