"""Adapter + ``dpo`` against the published Diffusion-DPO steps; sources are named in ``published_diffusion.py``."""

import published_diffusion as published
import pytest
import torch
from batches import DENOISERS, random_batch, seeded

from mmalign.adapters import DiffusionAdapter
from mmalign.losses import dpo


def policy_and_reference(kind):
    """Two float64 UNets that differ enough for the sigmoid to be neither flat nor at one half."""
    policy, reference = DENOISERS[kind]().double(), DENOISERS[kind]().double()
    generator = seeded(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy, reference.requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "prediction_type", "scale"),
    [
        pytest.param("sdxl", "epsilon", -0.5 * 5000, id="salesforce-and-diffusers-sdxl"),
        pytest.param("sd15", "epsilon", -1.0 * 2500, id="diffusers-sd15-without-half"),
        pytest.param("sd15", "v_prediction", -0.5 * 5000, id="v-prediction"),
    ],
)
def test_loss_and_gradients_are_the_published_ones(kind, prediction_type, scale):
    policy, reference = policy_and_reference(kind)
    batch, scheduler = random_batch(kind, 3, dtype=torch.float64), published.schedule(prediction_type)
    logits = published.dpo_logits(policy, reference, batch, scheduler, scale)
    assert 0.01 < logits.abs().max() < 20  # otherwise the comparison would show nothing
    theirs = published.dpo_loss(logits)

    scores = DiffusionAdapter(scheduler).score(policy, reference, batch, generator=seeded(published.DRAWS))
    ours = dpo(scores.chosen_logratio, scores.rejected_logratio, beta=5000.0).mean()

    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    pairs = zip(published.gradients(ours, policy), published.gradients(theirs, policy), strict=True)
    for own, expected in pairs:
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
