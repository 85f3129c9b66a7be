"""Before the first step policy and reference agree: every log-ratio is exactly zero, so DPO starts at log 2."""

import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
from batches import DENOISERS, random_batch, seeded
from diffusers import DDPMScheduler
from peft import LoraConfig

from mmalign.adapters import ADAPTERS, DiffusionAdapter, FlowAdapter
from mmalign.losses import dpo
from mmalign.references import FrozenReference, LoRAOffReference

CASES = {
    "sd15": ("diffusion", "sd15", lambda: DiffusionAdapter(DDPMScheduler())),
    "sd21": ("diffusion", "sd15", lambda: DiffusionAdapter(DDPMScheduler(prediction_type="v_prediction"))),
    "sdxl": ("diffusion", "sdxl", lambda: DiffusionAdapter(DDPMScheduler())),
    "turbo": ("diffusion", "sdxl", lambda: DiffusionAdapter(DDPMScheduler(), timesteps="turbo")),
    "sample": ("diffusion", "sdxl", lambda: DiffusionAdapter(DDPMScheduler(prediction_type="sample"))),
    "sd3": ("flow", "sd3", lambda: FlowAdapter(timesteps="logit_normal", shift=3.0)),
}
REFERENCES = {"module": lambda policy: policy, "frozen": FrozenReference, "lora_off": LoRAOffReference}
BRANCHES = ("chosen", "rejected", "candidates", "sample")


def policy_for(kind, reference):
    policy = DENOISERS[kind]()
    if reference == "lora_off":
        policy.requires_grad_(False).add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"]))
    return policy.train()


def on_cuda(batch):
    def moved(value):
        return {branch: tensor.cuda() for branch, tensor in value.items()} if isinstance(value, dict) else value.cuda()

    given = {name: getattr(batch, name) for name in ("latents", "prompt_embeds", "pooled_embeds", "time_ids")}
    return dataclasses.replace(batch, **{name: moved(value) for name, value in given.items() if value is not None})


def test_every_adapter_is_covered():
    # The laws of responses are held in tests/vlm, where their batches are made.
    assert {family for family, _, _ in CASES.values()} | {"vlm"} == ADAPTERS.keys()


@pytest.mark.parametrize("precision", ["float32", "bf16_autocast", "bf16_weights", "checkpointing"])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("case", CASES)
def test_log_ratios_are_exactly_zero(case, reference, precision):
    _, kind, adapter = CASES[case]
    policy = policy_for(kind, reference)
    dtype = torch.float32
    if precision == "checkpointing":
        policy.enable_gradient_checkpointing()
    if precision == "bf16_weights":
        dtype = torch.bfloat16
        policy.to(dtype)
    context = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16_autocast" else nullcontext()
    batch = random_batch(kind, branches=BRANCHES, dtype=dtype)
    with context:
        scores = adapter().score(policy, REFERENCES[reference](policy), batch, BRANCHES, generator=seeded())
    for branch in BRANCHES:
        assert scores[branch].logp.dtype == torch.float32
        assert scores[branch].logratio.count_nonzero() == 0
    loss = dpo(scores.chosen_logratio, scores.rejected_logratio, beta=5000.0)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


@pytest.mark.parametrize("reference", ["frozen", "lora_off"])
@pytest.mark.parametrize("case", CASES)
def test_one_step_of_descent_raises_the_margin(case, reference):
    _, kind, adapter = CASES[case]
    policy = policy_for(kind, reference).double()
    given = REFERENCES[reference](policy)
    batch = random_batch(kind, dtype=torch.float64)

    def margin():
        scores = adapter().score(policy, given, batch, generator=seeded())
        return scores.chosen_logratio - scores.rejected_logratio, scores

    before, scores = margin()
    dpo(scores.chosen_logratio, scores.rejected_logratio, beta=5000.0).mean().backward()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    torch.optim.SGD(trained, lr=1e-7).step()
    after, _ = margin()
    assert before.tolist() == [0.0, 0.0]
    assert after.mean() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("case", CASES)
def test_log_ratios_are_exactly_zero_on_cuda(case, reference):
    _, kind, adapter = CASES[case]
    policy = policy_for(kind, reference).cuda()
    batch = on_cuda(random_batch(kind))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        scores = adapter().score(policy, REFERENCES[reference](policy), batch, generator=seeded())
    assert scores.chosen_logratio.count_nonzero() == scores.rejected_logratio.count_nonzero() == 0


@pytest.mark.parametrize("reference", REFERENCES)
def test_gradients_under_autocast_survive_the_reference_pass(reference):
    """Weights that autocast casts under no_grad must not be the ones that the policy's backward relies on."""
    policy = policy_for("sd15", reference)
    adapter = CASES["sd15"][2]()
    for _ in range(2):  # in the second call the cache of the first may still be warm
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = adapter.score(policy, REFERENCES[reference](policy), random_batch("sd15"), generator=seeded())
        policy.zero_grad()
        dpo(scores.chosen_logratio, scores.rejected_logratio, beta=5000.0).mean().backward()
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        assert all(parameter.grad is not None for parameter in trained)
