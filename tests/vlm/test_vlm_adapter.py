"""Log-probs and gradients of the adapter against the plain forward of every model family, in float64."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from mmalign.adapters import VLMAdapter, VLMPolicy
from mmalign.references import FrozenReference, LoRAOffReference
from tests.vlm.tiny_vlms import KINDS, tiny_vlm
from tests.vlm.vlm_batches import pair_batch, part_of, plain_scores

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


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_lora_off_is_the_base_model_and_gets_no_gradient(kind: str) -> None:
    base, model = tiny_vlm(kind), tiny_vlm(kind)
    batch = pair_batch(model, kind)
    policy = VLMPolicy(model)
    policy.requires_grad_(False)
    targets = [
        name for name, part in model.named_modules() if "language_model" in name and name.endswith(("q_proj", "v_proj"))
    ]
    policy.add_adapter(LoraConfig(r=2, target_modules=targets), "default")
    policy.double().train()
    reference = LoRAOffReference(policy)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    scores = VLMAdapter().score(policy, reference, batch)
    with torch.no_grad():
        close(scores.ref_chosen_logp, plain_scores(base, batch, "chosen"))
        close(scores.chosen_logp, plain_scores(model, batch, "chosen"))
        assert (scores.chosen_logratio.abs() > 1e-3).all()
    (scores.chosen_logratio - scores.rejected_logratio).sum().backward()
    packed = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert packed
    assert all("lora_" in name for name in packed)
    model.zero_grad()
    (plain_scores(model, batch, "chosen") - plain_scores(model, batch, "rejected")).sum().backward()
    for name, value in model.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(packed[name], value.grad, rtol=1e-5, atol=1e-6)
