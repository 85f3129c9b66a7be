"""Diffusion-DPO in your own loop: no configuration, no trainer."""

import torch

from mmalign.adapters import DiffusionAdapter
from mmalign.losses import dpo
from mmalign.references import FrozenReference


def align(unet, noise_scheduler, batches, *, learning_rate=1e-5, seed=0):
    adapter, reference = DiffusionAdapter(noise_scheduler), FrozenReference(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=learning_rate)
    g = torch.Generator().manual_seed(seed)
    for batch in batches:
        scores = adapter.score(unet, reference, batch, generator=g)
        loss = dpo(scores.chosen_logratio, scores.rejected_logratio, beta=5000).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
