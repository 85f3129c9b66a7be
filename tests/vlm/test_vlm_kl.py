"""KL of the next token's distribution, and branches whose log-prob is a constant, against plain forwards in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from mmalign.adapters import VLMAdapter, VLMBatch, VLMPolicy
from mmalign.adapters.vlm_forward import token_kls
from mmalign.losses import Objective
from mmalign.references import FrozenReference, LoRAOffReference
from tests.vlm.tiny_vlms import pictures, tiny_vlm
from tests.vlm.vlm_batches import ADAPTER, pair_batch, plain_logp, plain_scores, prompt, types_of

PAIR = ("chosen", "rejected")


def plain_distributions(model: Any, batch: VLMBatch, branch: str) -> list[Tensor]:
    """Log-probs of the whole vocabulary at every token of every response, by the model's own forward."""
    found = []
    for response in batch.responses[branch]:
        context = batch.contexts[response.context]
        row = torch.cat([context.input_ids, response.input_ids])[None]
        media = dict(context.media)
        if "image_grid_thw" in media:
            media["mm_token_type_ids"] = types_of(row)
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, **media).logits[0]
        found.append(torch.log_softmax(logits[context.length - 1 : -1], dim=-1))
    return found


def plain_kls(policy: Any, reference: Any, batch: VLMBatch, branch: str) -> Tensor:
    pairs = zip(plain_distributions(policy, batch, branch), plain_distributions(reference, batch, branch), strict=True)
    return torch.stack([(of.exp() * (of - own)).sum() for own, of in pairs])


def with_lora(model: Any, *, moved: bool = True) -> VLMPolicy:
    policy = VLMPolicy(model)
    policy.requires_grad_(False)
    targets = [name for name, _ in model.named_modules() if "language_model" in name and name.endswith("o_proj")]
    policy.add_adapter(LoraConfig(r=2, target_modules=targets), "default")
    for name, value in policy.double().named_parameters():
        if "lora_B" in name and moved:
            torch.nn.init.normal_(value, std=1.0, generator=torch.Generator().manual_seed(len(name)))
    return policy


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("pack", ["auto", "never"])
def test_divergences_and_their_gradients(kind: str, pack: str) -> None:
    base, policy = tiny_vlm(kind), with_lora(tiny_vlm(kind))
    batch = pair_batch(base, kind)
    adapter = VLMAdapter(pack, token_kl=("rejected",))
    scores = adapter.score(policy, LoRAOffReference(policy), batch, PAIR)
    assert scores["chosen"].token_kl is None
    with torch.no_grad():
        expected = plain_kls(policy.model, base, batch, "rejected")
    torch.testing.assert_close(scores["rejected"].token_kl, expected, rtol=0, atol=1e-9)
    assert (expected > 1e-4).all()
    plain = VLMAdapter(pack).score(policy, LoRAOffReference(policy), batch, PAIR)
    for branch in PAIR:
        assert torch.equal(scores[branch].logratio, plain[branch].logratio)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    trained = [value for value in policy.parameters() if value.requires_grad]
    found = torch.autograd.grad((weights * scores["rejected"].token_kl).sum(), trained)
    wanted = torch.autograd.grad((weights * plain_kls(policy.model, base, batch, "rejected")).sum(), trained)
    for of, value in zip(found, wanted, strict=True):
        torch.testing.assert_close(of, value, rtol=1e-5, atol=1e-7)


def test_no_divergence_where_policy_and_reference_are_the_same() -> None:
    model = tiny_vlm("llava")
    policy = with_lora(model, moved=False)
    for reference in (LoRAOffReference(policy), FrozenReference(policy)):
        scores = VLMAdapter(token_kl=PAIR).score(policy, reference, pair_batch(model, "llava"))
        assert scores["chosen"].token_kl.abs().max() == 0
        assert scores["rejected"].logratio.abs().max() == 0


def test_chunks_do_not_change_divergences() -> None:
    head = torch.nn.Linear(8, 50).double()
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.randn(23, 50, dtype=torch.float64), dim=-1)
    whole = torch.nn.functional.kl_div(
        torch.log_softmax(head(hidden), -1), reference, log_target=True, reduction="none"
    ).sum(-1)
    chunked = token_kls(hidden, reference, head, values=200)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    found, wanted = (torch.autograd.grad(of.sin().sum(), head.weight, retain_graph=True)[0] for of in (chunked, whole))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def held_batch(model: Any) -> VLMBatch:
    """A pair with its picture, and the same responses with another one."""
    batch = pair_batch(model, "llava")
    contexts = (batch.contexts[0], prompt(model, "llava", pictures("llava", seed=9)))
    pair = {branch: batch.responses[branch][:1] for branch in PAIR}
    others = {f"{branch}@noise": (replace(many[0], context=1),) for branch, many in pair.items()}
    return VLMBatch(contexts, {**pair, **others}, sample_ids=("a",))


def test_v_dpo_of_the_published_equation_and_gradient() -> None:
    """Guided log-probs of the policy, constant where they come from the other picture; the reference is not guided."""
    model, reference = tiny_vlm("llava"), tiny_vlm("llava", seed=1)
    batch = held_batch(model)
    beta, gamma = 0.3, 1.7
    objective = Objective(
        [
            {
                "loss": "v_dpo",
                "beta": beta,
                "guidance": gamma,
                "chosen_other": "chosen@noise",
                "rejected_other": "rejected@noise",
            }
        ]
    )
    assert objective.held_branches == ("chosen@noise", "rejected@noise")
    adapter = VLMAdapter(held=objective.held_branches)
    scores = adapter.score(VLMPolicy(model), FrozenReference(reference), batch, objective.branches)
    assert not scores["chosen@noise"].logp.requires_grad
    assert scores["chosen@noise"].ref_logp is None
    torch.testing.assert_close(
        scores["rejected@noise"].logp, plain_scores(model, batch, "rejected@noise").detach(), rtol=0, atol=1e-9
    )

    def guided(side: str) -> Tensor:
        row, other = batch.responses[side][0], batch.responses[f"{side}@noise"][0]
        seen = plain_logp(model, batch.contexts[0], row.input_ids)
        unseen = plain_logp(model, batch.contexts[1], other.input_ids).detach()
        of_reference = plain_logp(reference, batch.contexts[0], row.input_ids).detach()
        return gamma * seen - (gamma - 1) * unseen - of_reference

    expected = -torch.nn.functional.logsigmoid(beta * (guided("chosen") - guided("rejected")))
    found = objective(scores).loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    own, plain = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-7)


def test_chip_of_the_published_equation() -> None:
    model, reference = tiny_vlm("llava"), tiny_vlm("llava", seed=1)
    batch = held_batch(model)
    terms = [{"loss": "chip", "beta": 0.2, "token_weight": 0.4, "chosen_other": "chosen@noise"}]
    objective = Objective(terms)
    assert objective.token_kl_branches == PAIR
    assert objective.held_branches == ()
    adapter = VLMAdapter(token_kl=objective.token_kl_branches)
    with torch.no_grad():
        scores = adapter.score(model, reference, batch, objective.branches)
        chosen, rejected, other = (
            plain_scores(model, batch, branch) - plain_scores(reference, batch, branch)
            for branch in (*PAIR, "chosen@noise")
        )
        kls = [plain_kls(model, reference, batch, branch) for branch in PAIR]
    logits = (chosen - rejected) + (chosen - other) - 0.4 * (kls[1] - kls[0])
    expected = -torch.nn.functional.logsigmoid(0.2 * logits).mean()
    torch.testing.assert_close(objective(scores).loss, expected, rtol=0, atol=1e-9)


def test_without_an_adapter_that_gives_them_divergences_are_asked_for() -> None:
    model = tiny_vlm("llava")
    objective = Objective([{"loss": "chip", "beta": 0.2, "chosen_other": "chosen@noise"}])
    scores = ADAPTER.score(model, FrozenReference(model), held_batch(model), objective.branches)
    with pytest.raises(ValueError, match="which only vision-language models give"):
        objective(scores)
