import os

import pytest
import torch
from batches import DENOISERS, random_batch, seeded
from diffusers import DDPMScheduler
from peft import LoraConfig, get_peft_model

from mmalign.adapters import DiffusionAdapter
from mmalign.references import (
    FrozenReference,
    LoRAOffReference,
    Reference,
    as_reference,
    fingerprint_of,
)

LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"])


def base(seed=0):
    return DENOISERS["sd15"](seed).requires_grad_(False)


def with_lora(seed=0, *, moved=True):
    """A UNet with adapters; ``moved`` sets their second factor off zero, so that adapters matter."""
    unet = base(seed)
    unet.add_adapter(LORA)
    if moved:
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=seeded())
    return unet


def flags(module):
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def score(policy, reference):
    return DiffusionAdapter(DDPMScheduler()).score(policy, reference, random_batch("sd15"), generator=seeded())


# --- frozen copy


def test_a_frozen_copy_does_not_follow_the_policy():
    policy = DENOISERS["sd15"]()
    reference = FrozenReference(policy)
    before = score(policy, None).chosen_logp.detach()
    with torch.no_grad():
        policy.conv_in.weight.add_(0.1)
    after = score(policy, reference)
    assert torch.equal(after.ref_chosen_logp, before)
    assert (after.chosen_logratio != 0).all()


def test_a_frozen_copy_leaves_its_original_trainable_and_in_its_mode():
    policy = DENOISERS["sd15"]().train()
    reference = FrozenReference(policy)
    assert policy.training
    assert all(flags(policy).values())
    assert not reference.module.training
    assert not any(flags(reference.module).values())


# --- adapters off


def test_adapters_off_is_the_base_model():
    policy = with_lora()
    scores = score(policy, LoRAOffReference(policy))
    torch.testing.assert_close(scores.ref_chosen_logp, score(base(), None).chosen_logp, rtol=0, atol=0)
    assert (scores.chosen_logratio != 0).all()


def test_adapters_off_works_for_a_peft_model():
    policy = get_peft_model(base(), LORA)
    with torch.no_grad():
        policy.base_model.model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.lora_B["default"].weight.fill_(
            1
        )
    reference = LoRAOffReference(policy)
    scores = score(policy, reference)
    assert torch.equal(scores.ref_chosen_logp, score(base(), None).chosen_logp)
    assert (scores.chosen_logratio != 0).all()
    assert reference.fingerprint() == fingerprint_of(base())


@pytest.mark.parametrize("fails", [False, True])
def test_adapters_and_gradients_are_as_before_also_after_an_error(fails):
    policy = with_lora()
    frozen_by_hand = next(name for name in flags(policy) if "lora_A" in name)
    policy.get_parameter(frozen_by_hand).requires_grad_(False)
    before, scored = flags(policy), score(policy, None).chosen_logp
    try:
        with LoRAOffReference(policy).using(policy):
            assert not torch.equal(score(policy, None).chosen_logp, scored)
            if fails:
                raise RuntimeError("inside the context")
    except RuntimeError:
        assert fails
    assert flags(policy) == before
    assert torch.equal(score(policy, None).chosen_logp, scored)


def test_adapters_that_were_off_before_stay_off():
    policy = with_lora()
    policy.disable_adapters()
    with LoRAOffReference(policy).using(policy):
        pass
    assert torch.equal(score(policy, None).chosen_logp, score(base(), None).chosen_logp)


def test_a_module_without_adapters_is_refused():
    with pytest.raises(ValueError, match="UNet2DConditionModel has no adapters to switch off"):
        LoRAOffReference(base())


def test_trained_weights_beside_the_adapters_are_refused():
    policy = with_lora()
    policy.conv_out.requires_grad_(True)
    with pytest.raises(ValueError, match=r"2 parameters outside the adapters are trained \(conv_out\.weight"):
        LoRAOffReference(policy)


def gradients(policy, reference):
    policy.zero_grad()
    scores = score(policy, reference)
    torch.nn.functional.softplus(-scores.chosen_logratio + scores.rejected_logratio).mean().backward()
    return {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}


def test_gradient_checkpointing_recomputes_with_adapters_on():
    policy = with_lora().train()
    reference = LoRAOffReference(policy)
    plain = gradients(policy, reference)
    policy.enable_gradient_checkpointing()
    recomputed = gradients(policy, reference)
    assert plain.keys() == recomputed.keys() == {name for name in plain if "lora_" in name}
    assert any(gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient)


def test_the_wrapped_policy_is_run_and_the_unwrapped_one_is_switched(tmp_path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        policy = with_lora()
        reference = LoRAOffReference(policy)
        wrapped = torch.nn.parallel.DistributedDataParallel(policy)
        plain = gradients(policy, reference)
        runs = []
        handle = wrapped.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
        distributed = gradients(wrapped, reference)
        handle.remove()
    finally:
        torch.distributed.destroy_process_group()
    assert runs == [True, False]
    assert {"module." + name for name in plain} == distributed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(distributed["module." + name], gradient)


def test_a_compiled_policy_notices_that_its_adapters_are_off():
    policy = with_lora()
    compiled = torch.compile(policy, backend="aot_eager")
    scores = score(compiled, LoRAOffReference(policy))
    eager = score(policy, LoRAOffReference(policy))
    torch.testing.assert_close(scores.chosen_logp, eager.chosen_logp, rtol=0, atol=1e-6)
    torch.testing.assert_close(scores.ref_chosen_logp, eager.ref_chosen_logp, rtol=0, atol=1e-6)


# --- fingerprints


def test_fingerprints_tell_weights_apart_and_nothing_else():
    same, other = fingerprint_of(base()), fingerprint_of(base(seed=1))
    assert same == fingerprint_of(base()) == FrozenReference(base()).fingerprint()
    assert same != other
    nudged = base()
    nudged.conv_out.bias[0] += 1e-3
    assert fingerprint_of(nudged) != same
    assert fingerprint_of(base().bfloat16()) != same


def test_the_fingerprint_of_adapters_off_is_that_of_the_base_and_survives_training():
    policy = with_lora(moved=False)
    reference = LoRAOffReference(policy)
    assert reference.fingerprint() == fingerprint_of(base())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(1.0)
    assert reference.fingerprint() == fingerprint_of(base())


# --- what counts as a reference


def test_as_reference():
    unet, frozen = base(), FrozenReference(base())
    assert as_reference(None) is None
    assert as_reference(frozen) is frozen
    of_module = as_reference(unet)
    assert isinstance(of_module, Reference)
    with of_module.using(base(1)) as module:
        assert module is unet
    assert of_module.fingerprint() == fingerprint_of(unet)
    with pytest.raises(ValueError, match="str is no reference"):
        as_reference("frozen")
