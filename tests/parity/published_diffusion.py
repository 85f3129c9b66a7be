"""The published training steps of Diffusion-DPO and MaPO, written down again from their definitions in float64.

Sources (facts only; nothing is copied):
- SalesforceAIResearch/DiffusionDPO train.py L1049-1055 and L1125-1145, Apache-2.0: per-sample mean squared error,
  -log sigmoid(-0.5 * beta * ((w - l) - (ref_w - ref_l))), beta 5000, batch mean; noise and timestep shared by a pair.
- huggingface/diffusers examples/research_projects/diffusion_dpo/train_diffusion_dpo_sdxl.py L1020-1041, Apache-2.0: the
  same expression for SDXL with micro-conditioning.
- huggingface/diffusers examples/research_projects/diffusion_dpo/train_diffusion_dpo.py L860-887, Apache-2.0:
  -log sigmoid(beta * ((ref_w - ref_l) - (w - l))) with beta 2500 and no half.
- mapo-t2i/mapo utils.py L286-301 ``compute_loss``, Apache-2.0, on the same errors without a reference.
"""

import torch
from batches import seeded
from diffusers import DDPMScheduler
from torch import Tensor, nn

from mmalign.types import Batch

DRAWS = 5  # the seed of noise and timesteps


def schedule(prediction_type: str) -> DDPMScheduler:
    """The training schedule of SD1.5 and SDXL."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type
    )


def errors(unet: nn.Module, batch: Batch, scheduler: DDPMScheduler) -> tuple[Tensor, Tensor]:
    """Mean squared error of each chosen and each rejected sample, both sides of a pair noised alike."""
    generator = seeded(DRAWS)
    timesteps, noises = [], []
    for _ in range(batch.size):
        timesteps.append(torch.randint(0, scheduler.config.num_train_timesteps, (), generator=generator))
        noises.append(torch.randn(batch.latents["chosen"].shape[1:], generator=generator, dtype=torch.float64))
    timestep, noise = torch.stack(timesteps).repeat(2), torch.stack(noises).repeat(2, 1, 1, 1)
    clean = torch.cat([batch.latents["chosen"], batch.latents["rejected"]])
    extra = {}
    if batch.time_ids is not None:
        extra["added_cond_kwargs"] = {
            "text_embeds": batch.pooled_embeds.repeat(2, 1),
            "time_ids": torch.cat([batch.time_ids["chosen"], batch.time_ids["rejected"]]),
        }
    text = batch.prompt_embeds.repeat(2, 1, 1)
    noisy = scheduler.add_noise(clean, noise, timestep)
    prediction = unet(noisy, timestep, encoder_hidden_states=text, **extra).sample
    of_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(clean, noise, timestep) if of_velocity else noise
    return tuple(torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3)).chunk(2))


def dpo_logits(policy: nn.Module, reference: nn.Module, batch: Batch, scheduler: DDPMScheduler, scale: float) -> Tensor:
    """scale * (gap of the policy - gap of the reference), gap = error of chosen - error of rejected."""
    own_w, own_l = errors(policy, batch, scheduler)
    with torch.no_grad():
        ref_w, ref_l = errors(reference, batch, scheduler)
    return scale * ((own_w - own_l) - (ref_w - ref_l))


def dpo_loss(logits: Tensor) -> Tensor:
    """-log sigmoid, batch mean."""
    return torch.log1p(torch.exp(-logits)).mean()


def mapo_loss(chosen_error: Tensor, rejected_error: Tensor) -> Tensor:
    """mean(w) - beta * mean(log sigmoid(T * (f(s w) - f(s l)))), f(x) = x / (e^x - 1); beta .1, s .5, T 1000."""
    bose = [0.5 * error / (torch.exp(0.5 * error) - 1) for error in (chosen_error, rejected_error)]
    return chosen_error.mean() + 0.1 * torch.log1p(torch.exp(-1000 * (bose[0] - bose[1]))).mean()


def gradients(loss: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
    """d loss / d every parameter."""
    return torch.autograd.grad(loss, list(module.parameters()))
