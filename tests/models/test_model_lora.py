"""Adapters on a denoiser, and full weights."""

import pytest
import torch
from tiny_models import LATENT, TEXT_WIDTH, TOKENS, tiny_transformer_sd3, tiny_unet_sd15, tiny_unet_sdxl

from mmalign.models import add_lora, make_trainable
from mmalign.models.lora import full_weights_of
from mmalign.models.lora_weights import (
    START,
    LoRALayer,
    LoRAWeights,
    active_adapters,
    load_adapter,
    lora_layers,
    set_active,
)
from mmalign.training.config import LoRAConfig

TARGETS = ("to_q", "conv1")


def predict(unet: torch.nn.Module) -> torch.Tensor:
    noise = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, LATENT, LATENT, generator=noise)
    text = torch.randn(2, TOKENS, TEXT_WIDTH, generator=noise)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 900]), text).sample


def test_the_policy_starts_exactly_at_the_base_model() -> None:
    unet = tiny_unet_sd15()
    before = predict(unet)
    add_lora(unet, LoRAConfig(rank=4, alpha=16.0))
    assert torch.equal(predict(unet), before)


def test_the_update_is_alpha_over_rank_times_b_a() -> None:
    unet = tiny_unet_sd15()
    add_lora(unet, LoRAConfig(rank=4, alpha=2.0, targets=["to_q"]))
    layer = next(module for name, module in unet.named_modules() if name.endswith("to_q"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(up)
    x = torch.randn(5, layer.in_features)
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ down.T @ up.T * 2.0 / 4)


@pytest.mark.parametrize("build", [tiny_unet_sd15, tiny_unet_sdxl, tiny_transformer_sd3])
def test_only_adapters_are_trained_and_in_single_precision(build: object) -> None:
    denoiser = build().to(torch.bfloat16)  # type: ignore[operator]
    trained = make_trainable(denoiser, LoRAConfig(rank=2))
    named = {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    assert trained
    assert len(named) == len(trained)
    assert all(".lora_" in name and parameter.dtype == torch.float32 for name, parameter in named.items())
    frozen = [parameter for parameter in denoiser.parameters() if not parameter.requires_grad]
    assert all(parameter.dtype == torch.bfloat16 for parameter in frozen)


def test_all_targets_get_rank_and_dropout() -> None:
    unet = tiny_unet_sd15()
    add_lora(unet, LoRAConfig(rank=3, dropout=0.25, targets=["to_k", "to_out.0"]))
    layers = {name: module for name, module in unet.named_modules() if hasattr(module, "lora_A")}
    expected = {n for n, _ in tiny_unet_sd15().named_modules() if n.endswith(("to_k", "to_out.0"))}
    assert set(layers) == expected
    assert all(layer.r["default"] == 3 and layer.lora_dropout["default"].p == 0.25 for layer in layers.values())


def test_a_target_that_matches_nothing_lists_what_exists() -> None:
    unet = tiny_unet_sd15()
    with pytest.raises(ValueError, match=r"to_quack.*to_out\.0.*to_q"):
        add_lora(unet, LoRAConfig(targets=["to_q", "to_quack"]))
    assert not getattr(unet, "peft_config", None)


def test_full_weights_are_all_trained_in_single_precision() -> None:
    unet = tiny_unet_sd15().requires_grad_(False).to(torch.bfloat16)
    trained = make_trainable(unet, None)
    assert len(trained) == len(list(unet.parameters()))
    assert {parameter.dtype for parameter in trained} == {torch.float32}


# --- DoRA, rsLoRA and modules in full


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_starts_at_the_base_model_and_measures_rows_in_single_precision(dtype: torch.dtype) -> None:
    unet = tiny_unet_sd15().to(dtype)
    before = {name: layer.weight.detach().float() for name, layer in unet.named_modules() if name.endswith(TARGETS)}
    trained = make_trainable(unet, LoRAConfig(rank=4, alpha=10.0, dora=True, targets=list(TARGETS)))
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    layers = lora_layers(unet)
    assert layers.keys() == before.keys()
    for name, weight in before.items():
        magnitude = layers[name].lora_magnitude_vector["default"].weight.flatten()
        torch.testing.assert_close(magnitude, weight.flatten(1).norm(dim=1))
    if dtype == torch.float32:
        assert torch.equal(predict(unet), predict(tiny_unet_sd15()))


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    unet = tiny_unet_sd15()
    add_lora(unet, LoRAConfig(rank=4, alpha=6.0, rslora=True, targets=["to_q"]))
    assert {layer.scaling["default"] for layer in lora_layers(unet).values()} == {3.0}


def test_modules_in_full_are_trained_beside_the_adapters() -> None:
    unet = tiny_unet_sd15().to(torch.bfloat16)
    config = LoRAConfig(rank=2, targets=["to_q"], train_also=["conv_in", "mid_block.resnets.0", "norm1"])
    make_trainable(unet, config)
    in_full = {name for name, value in unet.named_parameters() if value.requires_grad and ".lora_" not in name}
    assert {"conv_in.weight", "conv_in.bias", "mid_block.resnets.0.conv1.weight"} <= in_full
    assert all(name.startswith(("conv_in.", "mid_block.resnets.0.")) or ".norm1." in name for name in in_full)
    assert {value.dtype for value in unet.parameters() if value.requires_grad} == {torch.float32}
    # mid_block.resnets.0.norm1 is named twice, and listed once.
    assert full_weights_of(unet, config).keys() == in_full


@pytest.mark.parametrize(
    ("train_also", "message"),
    [
        (["conv_inn"], r"conv_inn matches no module with weights.*conv_in"),
        (["attn1"], r"both name .*attn1\.to_q \(\d+ modules"),
        (["to_q"], "trained either in full or through LoRA"),
    ],
)
def test_modules_in_full_that_cannot_be(train_also: list[str], message: str) -> None:
    unet = tiny_unet_sd15()
    with pytest.raises(ValueError, match=message):
        add_lora(unet, LoRAConfig(targets=["to_q"], train_also=train_also))
    assert not getattr(unet, "peft_config", None)


def test_a_fresh_lora_leaves_the_adapter_below_it_alone() -> None:
    unet = tiny_unet_sd15()
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    start = LoRAWeights({layer: LoRALayer(torch.ones(2, 16), torch.randn(16, 2), alpha=3.0)})
    load_adapter(unet, start, START)
    set_active(unet, [START])
    before = predict(unet)
    assert not torch.equal(before, predict(tiny_unet_sd15()))
    add_lora(unet, LoRAConfig(rank=4, targets=["to_q"]))
    assert torch.equal(predict(unet), before)
    assert active_adapters(unet) == [START, "default"]
    trained = {name for name, value in unet.named_parameters() if value.requires_grad}
    assert trained
    assert all(".default." in name for name in trained)
