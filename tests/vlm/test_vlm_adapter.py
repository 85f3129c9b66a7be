"""Log-probs and gradients of the adapter against the plain forward of every model family, in float64."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from mmalign.adapters import VLMAdapter, VLMBatch, VLMPolicy
from mmalign.adapters.vlm_families import family_of
from mmalign.references import FrozenReference, LoRAOffReference
from tests.vlm.tiny_vlms import KINDS, tiny_vlm
from tests.vlm.vlm_batches import pair_batch, part_of, plain_scores, response

EACH = pytest.mark.parametrize("kind", KINDS)
WAYS = {
    "packed": VLMAdapter(),
    "packed in long rows": VLMAdapter("always", row_tokens=150),
    "padded": VLMAdapter("never"),
}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {}


def model_and_batch(made: dict[str, Any], kind: str) -> Any:
    if kind not in made:
        model = tiny_vlm(kind)
        made[kind] = model, pair_batch(model, kind)
    return made[kind]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_the_plain_forward(made: dict[str, Any], kind: str, way: str) -> None:
    model, batch = model_and_batch(made, kind)
    with torch.no_grad():
        scores = WAYS[way].score(model, None, batch)
        for branch in ("chosen", "rejected"):
            close(scores[branch].logp, plain_scores(model, batch, branch))
    assert scores.chosen_length.tolist() == [6, 3, 1, 5]
    close(scores.chosen_mean_logp, scores.chosen_logp / scores.chosen_length)


@EACH
def test_gradients_are_those_of_the_plain_forward(made: dict[str, Any], kind: str) -> None:
    """Of every parameter, encoder included; the fp32 rounding inside RMSNorm and rotary embeddings is all there is."""
    model, batch = model_and_batch(made, kind)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return (weights * (chosen - 2 * rejected)).sum()

    scores = VLMAdapter().score(VLMPolicy(model), None, batch)
    packed = gradients(loss(scores.chosen_logp, scores.rejected_logp))
    plain = gradients(loss(plain_scores(model, batch, "chosen"), plain_scores(model, batch, "rejected")))
    assert packed.keys() == plain.keys()
    assert any("vision" in name or "visual" in name for name in plain)
    largest = max(float(value.abs().max()) for value in plain.values())
    for name, value in plain.items():
        torch.testing.assert_close(packed[name], value, rtol=0, atol=1e-6 * largest, msg=name)


@EACH
def test_the_same_policy_and_reference_give_log_ratios_of_zero(made: dict[str, Any], kind: str) -> None:
    model, batch = model_and_batch(made, kind)
    for adapter in WAYS.values():
        scores = adapter.score(model, FrozenReference(model), batch)
        assert scores.chosen_logratio.abs().max() == 0
        assert scores.rejected_logratio.abs().max() == 0


@EACH
def test_a_batch_is_its_rows_one_by_one(made: dict[str, Any], kind: str) -> None:
    model, batch = model_and_batch(made, kind)
    with torch.no_grad():
        for adapter in WAYS.values():
            whole = adapter.score(model, None, batch)
            alone = [adapter.score(model, None, part_of(batch, [row])) for row in range(batch.size)]
            for branch in ("chosen", "rejected"):
                close(whole[branch].logp, torch.cat([scores[branch].logp for scores in alone]))


def three_responses(batch: VLMBatch) -> VLMBatch:
    """The batch with a third response to every prompt."""
    third = tuple(response(row, 2 + row, seed=300 + row) for row in range(batch.size))
    return replace(batch, responses={**batch.responses, "third": third})


def with_lora(model: Any) -> VLMPolicy:
    """LoRA on the language model alone, with something in it."""
    policy = VLMPolicy(model)
    policy.requires_grad_(False)
    inside = f"{family_of(model).text}."
    targets = [name for name, _ in model.named_modules() if inside in name and name.endswith(("q_proj", "v_proj"))]
    policy.add_adapter(LoraConfig(r=2, target_modules=targets), "default")
    for name, value in policy.double().train().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return policy


@EACH
def test_policy_and_lora_off_reference_with_three_responses_and_several_prompts_in_a_row(
    made: dict[str, Any], kind: str
) -> None:
    """Scores of both and gradients of the policy, against plain forwards of one response at a time."""
    base, batch = model_and_batch(made, kind)
    batch = three_responses(batch)
    model = tiny_vlm(kind)
    policy = with_lora(model)
    adapter = VLMAdapter("always", row_tokens=150)
    branches = ("chosen", "rejected", "third")
    layout = adapter.layout(model, batch, [one for branch in branches for one in batch.responses[branch]])
    assert max(layout.row_contexts) > 1
    assert int(layout.part.max()) == 3
    scores = adapter.score(policy, LoRAOffReference(policy), batch, branches)
    with torch.no_grad():
        for branch in branches:
            close(scores[branch].ref_logp, plain_scores(base, batch, branch))
    plain = {branch: plain_scores(model, batch, branch) for branch in branches}
    for branch in branches:
        close(scores[branch].logp, plain[branch])
        assert (scores[branch].logratio.abs() > 1e-4).all()

    def loss(of: Mapping[str, Tensor]) -> Tensor:
        return (of["chosen"] - 2 * of["rejected"] + 0.5 * of["third"]).sum()

    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all("lora_" in name for name in trained)
    packed, expected = (
        torch.autograd.grad(loss(of), list(trained.values()))
        for of in ({branch: scores[branch].logratio for branch in branches}, plain)
    )
    for name, found, wanted in zip(trained, packed, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)
