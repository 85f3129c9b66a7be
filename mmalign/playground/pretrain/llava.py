"""Pretraining of ``tiny-llava`` in two phases, as large models of its kind are made.

First the vision tower alone, on a world without habits: every patch says what it shows (the part that CLIP's
pretraining plays for LLaVA). Then projector and text model behind the frozen tower, on descriptions and answers of a
world with habits, from which the text model learns its prior: where the habits are stronger than what it makes out of
the picture, it hallucinates.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.playground.pretrain.conversations import LABELS, Conversations, conversation_dataset, patch_dataset
from mmalign.playground.pretrain.frame import Plan, Progress, autocast, train
from mmalign.playground.tiny_llava import BOS_ID, IMAGE_ID, USER_ID, WIDTH, build_processor, build_tiny_llava


@dataclass(frozen=True)
class LlavaSettings:
    """Sizes of the run. The shipped weights say theirs in ``pretrain.json``.

    ``follow``: the probability with which each habit holds in training pictures. ``yes_share`` of the yes-or-no
    questions are true, so that there is a prior for yes, too. ``judged_pictures``: how many of each kind the quality is
    measured on. ``start``: the folder of an earlier run to train on, with fresh optimizers.
    """

    vision_images: int = 12_000
    vision_steps: int = 800
    vision_batch: int = 64
    images: int = 20_000
    steps: int = 1500
    batch: int = 16
    follow: float = 0.9
    questions: int = 5
    yes_share: float = 0.6
    learning_rate: float = 1.5e-3
    ema_decay: float = 0.995
    precision: str = "fp32"
    judged_pictures: int = 300
    start: str = ""
    seed: int = 0


def pretrain_llava(folder: Path, settings: LlavaSettings, device: torch.device, progress: Progress) -> Any:
    """The trained model, in evaluation mode. ``vision.pt`` in ``folder`` keeps the tower for a run that continues."""
    model: Any = build_tiny_llava()
    file = folder / "vision.pt"
    if settings.start:
        earlier = type(model).from_pretrained(settings.start, dtype=torch.float32)
        model.load_state_dict(earlier.state_dict())
    model.to(device)
    tower = model.model.vision_tower
    if not file.exists():
        train_vision(tower, settings, device, progress)
        torch.save(tower.state_dict(), file)
    tower.load_state_dict(torch.load(file, weights_only=True, map_location=device))
    train_language(model, settings, device, progress)
    file.unlink()
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


def train_language(model: Any, settings: LlavaSettings, device: torch.device, progress: Progress) -> None:
    """-log p(answer | picture, question), mean over answer tokens; the model ends with its averaged weights."""
    data = conversation_dataset(
        settings.images,
        settings.seed,
        follow=settings.follow,
        questions=settings.questions,
        yes_share=settings.yes_share,
    )
    model.model.vision_tower.requires_grad_(False).eval()
    optimizer = _optimizer(model, settings)

    def loss_of_step(step: int) -> Tensor:
        draws = torch.Generator().manual_seed(settings.seed * 7919 + step)
        rows = torch.randint(len(data.pictures), (settings.batch,), generator=draws)
        with autocast(device, settings.precision):
            return answer_loss(model, data, rows, device)

    plan = Plan("language", settings.steps, settings.learning_rate, settings.ema_decay)
    train(plan, model, optimizer, loss_of_step, progress)
    model.requires_grad_(True)


def answer_loss(model: Any, data: Conversations, rows: Tensor, device: torch.device) -> Tensor:
    """Mean cross entropy of the answers of ``rows``: ``<s> USER: <image>`` once, and all exchanges behind it."""
    features = model.model.get_image_features(pixel_values=to_pixels(data.pictures[rows].to(device)), return_dict=True)
    patches = features.pooler_output[0].shape[0]
    head = torch.tensor([BOS_ID, USER_ID, *[IMAGE_ID] * patches]).expand(len(rows), -1)
    used = int(data.segment[rows].amax(dim=0).count_nonzero())
    tokens = torch.cat([head, data.tokens[rows, :used]], dim=1).to(device)
    segment = torch.cat([torch.zeros_like(head), data.segment[rows, :used]], dim=1)
    position = torch.cat([torch.arange(head.shape[1]).expand_as(head), head.shape[1] + data.position[rows, :used]], 1)
    hidden = model.model(
        input_ids=tokens,
        attention_mask=_sees(segment, head.shape[1]).to(device),
        position_ids=position.to(device),
        mm_encoder_outputs={"image": features},
        use_cache=False,
    ).last_hidden_state
    is_answer = F.pad(data.is_answer[rows, :used].bool(), (head.shape[1], 0)).to(device)
    logits = model.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return F.cross_entropy(logits.float(), tokens[:, 1:][is_answer[:, 1:]])


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
