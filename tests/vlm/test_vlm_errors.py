"""What models of transformers let pass in silence is an error that names the row."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from mmalign.adapters import VLMAdapter, VLMBatch, VLMPolicy
from mmalign.references import LoRAOffReference
from tests.vlm.tiny_vlms import IMAGE, pictures, tiny_vlm
from tests.vlm.vlm_batches import ADAPTER, pair_batch, prompt, response, types_of, words


@pytest.fixture(scope="module")
def llava() -> Any:
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny_vlm("qwen2_5_vl")


def with_tokens(model: Any, count: int, *, seed: int) -> Any:
    ids = torch.cat([words(3, seed=seed), torch.full((count,), IMAGE), words(2, seed=seed)])
    return ADAPTER.context(model, ids, pictures("llava", seed=seed))


@pytest.mark.parametrize("pack", ["auto", "never"])
def test_fifteen_and_seventeen_tokens_for_two_pictures_of_sixteen(llava: Any, pack: Any) -> None:
    contexts = (with_tokens(llava, 15, seed=1), with_tokens(llava, 17, seed=2))
    many = (response(0, 3, seed=0), response(1, 3, seed=1))
    batch = VLMBatch(contexts, {"chosen": many, "rejected": many}, sample_ids=("first", "second"))
    with pytest.raises(ValueError, match=r"first: 15 image tokens in the prompt, but its images have 16 features"):
        VLMAdapter(pack).score(VLMPolicy(llava), None, batch)


def test_missing_token_types(qwen: Any) -> None:
    whole = prompt(qwen, "qwen2_5_vl", pictures("qwen2_5_vl"))
    with pytest.raises(ValueError, match=r"row 7: .*mm_token_type_ids.*positions of plain text"):
        ADAPTER.context(qwen, whole.input_ids, whole.media, name="row 7")
    with pytest.raises(ValueError, match="do not mark the image tokens"):
        ADAPTER.context(qwen, whole.input_ids, whole.media, mm_token_type_ids=torch.zeros_like(whole.input_ids))


def test_missing_grid(qwen: Any) -> None:
    whole = prompt(qwen, "qwen2_5_vl", pictures("qwen2_5_vl"))
    with pytest.raises(ValueError, match="image_grid_thw is missing"):
        ADAPTER.context(qwen, whole.input_ids, {"pixel_values": whole.media["pixel_values"]})


def test_grid_of_another_picture(qwen: Any) -> None:
    whole = prompt(qwen, "qwen2_5_vl", pictures("qwen2_5_vl"))
    media = pictures("qwen2_5_vl", wide=True)
    with pytest.raises(ValueError, match="do not fit the grids"):
        ADAPTER.context(qwen, whole.input_ids, media, mm_token_type_ids=types_of(whole.input_ids))


def test_pictures_without_tokens_and_tokens_without_pictures(llava: Any) -> None:
    with pytest.raises(ValueError, match="no image token stands in the prompt"):
        ADAPTER.context(llava, words(5, seed=0), pictures("llava"))
    with pytest.raises(ValueError, match="16 image tokens stand in the prompt, but no image is given"):
        ADAPTER.context(llava, torch.full((16,), IMAGE), {})


def test_media_of_another_family(llava: Any) -> None:
    with pytest.raises(ValueError, match="image_grid_thw is nothing that a llava takes"):
        ADAPTER.context(llava, torch.full((16,), IMAGE), pictures("qwen2_5_vl"))


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match=r"Linear .* is no family that is known here; known: llava"):
        VLMAdapter().score(nn.Linear(2, 2), None, VLMBatch((), {"chosen": (), "rejected": ()}))


def test_empty_response(llava: Any) -> None:
    batch = pair_batch(llava, "llava")
    first, *rest = batch.responses["chosen"]
    empty = (replace(first, input_ids=first.input_ids[:0]), *rest)
    with pytest.raises(ValueError, match="sample-0: the chosen response has no token"):
        VLMAdapter().score(llava, None, replace(batch, responses={**batch.responses, "chosen": empty}))


def test_unknown_branch(llava: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot score branches \['chosen@crop'\]"):
        VLMAdapter().score(llava, None, pair_batch(llava, "llava"), ("chosen", "chosen@crop"))


def test_dropout_in_training_mode() -> None:
    model = tiny_vlm("llava")
    batch = pair_batch(model, "llava")
    policy = VLMPolicy(model)
    policy.requires_grad_(False)
    policy.add_adapter(LoraConfig(r=2, target_modules=["o_proj"], lora_dropout=0.1), "default")
    policy.double().train()
    with pytest.raises(ValueError, match=r"lora_dropout.* drops 0.1 .*model.lora.dropout=0"):
        VLMAdapter().score(policy, None, batch)
    VLMAdapter().score(policy.eval(), None, batch)


def test_modules_unfrozen_beside_lora_are_no_reference_with_lora_off() -> None:
    policy = VLMPolicy(tiny_vlm("llava"))
    policy.requires_grad_(False)
    policy.add_adapter(LoraConfig(r=2, target_modules=["o_proj"]), "default")
    policy.model.model.multi_modal_projector.requires_grad_(True)
    with pytest.raises(ValueError, match=r"parameters outside the adapters are trained \(.*multi_modal_projector"):
        LoRAOffReference(policy)


def test_settings_that_would_be_ignored() -> None:
    with pytest.raises(ValueError, match="row_tokens would be ignored"):
        VLMAdapter("never", row_tokens=100)
    with pytest.raises(ValueError, match="pack='sometimes' is unknown"):
        VLMAdapter("sometimes")  # type: ignore[arg-type]
