"""What is computed once, when packing is given up, and FlexAttention, videos and chunks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign.adapters import VLMAdapter, VLMBatch, VLMPolicy, vlm_families
from mmalign.adapters.vlm_forward import token_logps
from mmalign.references import FrozenReference
from tests.vlm.tiny_vlms import EOS, VIDEO, VISION_END, VISION_START, pictures, tiny_vlm, tokens_of
from tests.vlm.vlm_batches import ADAPTER, pair_batch, plain_scores, prompt, response, types_of, words


class Counted:
    """How often, and with how many pictures, a model's encoder is called."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pictures: list[int] = []
        inner = model.model.get_image_features

        def counted(*args: Any, **given: Any) -> Any:
            self.pictures.append(given["pixel_values"].shape[0])
            return inner(*args, **given)

        monkeypatch.setattr(model.model, "get_image_features", counted)


def crop_batch(model: Any) -> VLMBatch:
    """Two pairs about the same picture, and a branch that sees another one."""
    shared, other = prompt(model, "llava", pictures("llava", seed=1)), prompt(model, "llava", pictures("llava", seed=2))
    chosen = (response(0, 5, seed=1), response(1, 3, seed=2))
    rejected = (response(0, 4, seed=3), response(1, 2, seed=4))
    cropped = tuple(replace(one, context=2) for one in chosen)
    second = replace(prompt(model, "llava", pictures("llava", seed=1), seed=5))
    responses = {"chosen": chosen, "rejected": rejected, "chosen@crop": cropped}
    return VLMBatch((shared, second, other), responses, sample_ids=("a", "b"))


BRANCHES = ("chosen", "rejected", "chosen@crop")


def test_a_frozen_encoder_sees_each_picture_once_for_policy_and_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm("llava")
    for value in vlm_families.vision_parameters(model).values():
        value.requires_grad_(False)
    batch, reference = crop_batch(model), FrozenReference(model)
    calls, copies = Counted(model, monkeypatch), Counted(reference.module, monkeypatch)
    scores = VLMAdapter().score(VLMPolicy(model), reference, batch, BRANCHES)
    assert calls.pictures == [2]  # two distinct pictures in six sequences under two models
    assert copies.pictures == []
    with torch.no_grad():
        for branch in BRANCHES:
            torch.testing.assert_close(scores[branch].logp, plain_scores(model, batch, branch), rtol=0, atol=1e-9)
            assert scores[branch].logratio.abs().max() == 0


def test_a_trained_encoder_sees_each_picture_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_vlm("llava")
    batch, reference = crop_batch(model), FrozenReference(model)
    calls, copies = Counted(model, monkeypatch), Counted(reference.module, monkeypatch)
    scores = VLMAdapter().score(VLMPolicy(model), reference, batch, BRANCHES)
    assert calls.pictures == [2]
    assert copies.pictures == [2]
    scores.chosen_logp.sum().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad is not None


def test_a_reference_with_another_encoder_encodes_for_itself() -> None:
    model, other = tiny_vlm("llava"), tiny_vlm("llava")
    model.requires_grad_(False)
    other.requires_grad_(False)
    other.model.multi_modal_projector.linear_2.weight.mul_(1.5)
    batch = pair_batch(model, "llava")
    scores = VLMAdapter().score(model, other, batch)
    torch.testing.assert_close(scores.ref_chosen_logp, plain_scores(other, batch, "chosen"), rtol=0, atol=1e-9)


def test_packing_saves_tokens() -> None:
    model = tiny_vlm("llava")
    batch = pair_batch(model, "llava")
    responses = [one for branch in ("chosen", "rejected") for one in batch.responses[branch]]
    packed, padded = VLMAdapter().layout(model, batch, responses), VLMAdapter("never").layout(model, batch, responses)
    long = VLMAdapter(row_tokens=200).layout(model, batch, responses)
    assert (packed.input_ids.shape[0], padded.input_ids.shape[0]) == (4, 8)
    assert packed.input_ids.numel() < 0.62 * padded.input_ids.numel()
    assert long.input_ids.shape[0] == 1


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("llava_onevision", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}, "layers of"),
        ("llava", {"sliding_window": 4}, "sliding window of 4"),
    ],
)
def test_sliding_windows_get_padded_rows(kind: str, changes: dict[str, Any], reason: str) -> None:
    if kind == "llava_onevision":
        changes = {**changes, "use_sliding_window": True}
    model = tiny_vlm(kind, **changes)
    if kind == "llava":
        model.model.language_model.config.sliding_window = 4
    batch = pair_batch(model, kind)
    assert reason in str(VLMAdapter.why_not_packed(model))
    scores = VLMAdapter().score(model, None, batch)
    torch.testing.assert_close(scores.chosen_logp, plain_scores(model, batch, "chosen"), rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"pack='always' is not possible: .*sliding"):
        VLMAdapter("always").score(model, None, batch)


def test_attention_without_masks_gets_padded_rows() -> None:
    model = tiny_vlm("llava")
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in str(VLMAdapter.why_not_packed(model))


@pytest.mark.parametrize("kind", ["llava", "llava_next", "qwen2_5_vl", "idefics3"])
def test_older_transformers_get_padded_rows_with_pictures_as_they_are(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 5.18 a model takes no encoded pictures; its own forward then has to encode them."""
    model = tiny_vlm(kind)
    batch = pair_batch(model, kind)
    expected = plain_scores(model, batch, "rejected")
    for module in ("mmalign.adapters.vlm", "mmalign.adapters.vlm_forward"):
        monkeypatch.setattr(f"{module}.takes_encoded", lambda model: False)
    scores = VLMAdapter().score(VLMPolicy(model), FrozenReference(model), batch)
    torch.testing.assert_close(scores.rejected_logp, expected, rtol=0, atol=1e-9)
    assert scores.rejected_logratio.abs().max() == 0
    with pytest.raises(ValueError, match="mm_encoder_outputs"):
        VLMAdapter("always").score(model, None, batch)


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_eager_attention_gives_the_same(kind: str) -> None:
    model = tiny_vlm(kind, attention="eager")
    batch = pair_batch(model, kind)
    with torch.no_grad():
        scores = VLMAdapter("always", row_tokens=150).score(model, None, batch)
        expected = plain_scores(tiny_vlm(kind), batch, "chosen")
    torch.testing.assert_close(scores.chosen_logp, expected, rtol=0, atol=1e-6)  # its softmax is in fp32


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its block mask on the real model; uncompiled, because compiling for a CPU takes minutes. Qwen has none yet."""
    kind = "llava"
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    monkeypatch.setattr("transformers.integrations.flex_attention.WrappedFlexAttention._instance", None)
    model = tiny_vlm(kind, dtype=torch.float32, attention="flex_attention")
    batch = pair_batch(model, kind)
    expected = VLMAdapter("always").score(tiny_vlm(kind), None, batch).chosen_logp.float()
    batch = batch.changed(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    with torch.no_grad():
        scores = VLMAdapter("always", row_tokens=150).score(model, None, batch)
    torch.testing.assert_close(scores.chosen_logp, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_videos(kind: str) -> None:
    model = tiny_vlm(kind)
    random = torch.Generator().manual_seed(0)
    if kind == "llava_onevision":
        media = {"pixel_values_videos": torch.randn(1, 2, 3, 28, 28, generator=random, dtype=torch.float64)}
    else:
        media = {
            "pixel_values_videos": torch.randn(2 * 4 * 6, 96, generator=random, dtype=torch.float64),
            "video_grid_thw": torch.tensor([[2, 4, 6]]),
        }
    count = tokens_of(model, media, "video")
    frames = [count] if kind != "qwen3_vl" else [count // 2] * 2  # its frames have time stamps between them
    shown = [torch.tensor([VISION_START] + [VIDEO] * of + [VISION_END]) for of in frames]
    if kind == "qwen2_5_vl":
        media["second_per_grid_ts"] = torch.tensor([1.0])
    ids = torch.cat([words(2, seed=0), *shown, words(3, seed=1)])
    context = ADAPTER.context(model, ids, media, mm_token_type_ids=types_of(ids))
    batch = VLMBatch((context,), {"chosen": (response(0, 4, seed=2),), "rejected": (response(0, 6, seed=3),)})
    with torch.no_grad():
        scores = VLMAdapter().score(model, None, batch)
        for branch in ("chosen", "rejected"):
            expected = plain_scores(model, batch, branch)
            torch.testing.assert_close(scores[branch].logp, expected, rtol=0, atol=1e-9)


def test_chunks_do_not_change_log_probs_or_gradients() -> None:
    head = torch.nn.Linear(8, 50).double()
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (23,))
    whole = torch.log_softmax(head(hidden), -1).gather(-1, targets[:, None])[:, 0]
    expected = torch.autograd.grad(whole.sin().sum(), [hidden, head.weight])
    chunked = token_logps(hidden, targets, head, values=200)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    for found, wanted in zip(torch.autograd.grad(chunked.sin().sum(), [hidden, head.weight]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_no_more_logits_at_a_time_than_a_chunk() -> None:
    head, seen = torch.nn.Linear(8, 50), []
    head.register_forward_hook(lambda module, given, out: seen.append(out.numel()))
    hidden = torch.randn(23, 8, requires_grad=True)
    token_logps(hidden, torch.zeros(23, dtype=torch.long), head, values=200).sum().backward()
    assert max(seen) <= 200
    assert len(seen) == 2 * 6  # computed once more in the backward, so that nothing of it is kept


def test_half_precision_sums_in_single_precision() -> None:
    model = tiny_vlm("llava", dtype=torch.bfloat16)
    batch = pair_batch(model, "llava").changed(lambda t: t.bfloat16() if t.is_floating_point() else t)
    with torch.no_grad():
        scores = VLMAdapter().score(model, None, batch)
    assert scores.chosen_logp.dtype == torch.float32
    assert (scores.chosen_logp != scores.chosen_logp.bfloat16().float()).any()


def test_token_weights_count_in_the_sum() -> None:
    model = tiny_vlm("llava")
    batch = pair_batch(model, "llava")
    first, *rest = batch.responses["chosen"]
    only_the_end = replace(first, weights=(first.input_ids == EOS).double())
    weighted = replace(batch, responses={**batch.responses, "chosen": (only_the_end, *rest)})
    shorter = replace(first, input_ids=first.input_ids[:-1])
    cut = replace(batch, responses={**batch.responses, "chosen": (shorter, *rest)})
    with torch.no_grad():
        full, last, without = (VLMAdapter().score(model, None, given) for given in (batch, weighted, cut))
    torch.testing.assert_close(last.chosen_logp[0], full.chosen_logp[0] - without.chosen_logp[0], rtol=0, atol=1e-9)
    assert last.chosen_length[0] == 6
