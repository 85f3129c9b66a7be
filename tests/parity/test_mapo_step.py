"""Adapter + ``mapo`` against the published MaPO step; the source is named in ``published_diffusion.py``."""

import math

import published_diffusion as published
import pytest
import torch
from batches import DENOISERS, random_batch, seeded

from mmalign.adapters import DiffusionAdapter
from mmalign.losses import mapo


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_loss_and_gradients_are_the_published_ones(kind, prediction_type):
    policy = DENOISERS[kind]().double()
    batch, scheduler = random_batch(kind, 3, dtype=torch.float64), published.schedule(prediction_type)
    theirs = published.mapo_loss(*published.errors(policy, batch, scheduler))

    scores = DiffusionAdapter(scheduler).score(policy, None, batch, generator=seeded(published.DRAWS))
    ours = mapo(scores.chosen_logp, scores.rejected_logp).mean()

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    pairs = zip(published.gradients(ours, policy), published.gradients(theirs, policy), strict=True)
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


def test_where_the_published_step_is_nan_ours_is_its_limit():
    perfect, nearly = torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-6, dtype=torch.float64)
    assert published.mapo_loss(perfect, perfect).isnan()
    assert mapo(perfect, perfect).item() == pytest.approx(0.1 * math.log(2))
    assert mapo(-0.5 * nearly, -0.5 * nearly).item() == pytest.approx(published.mapo_loss(nearly, nearly).item())
