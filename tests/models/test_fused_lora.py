"""LoRA in one call: what peft's own forward gives, in values and gradients, and its own forward where it has to be."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from mmalign.models import make_trainable
from mmalign.models.fused_lora import FusedLinear, fuse_lora
from mmalign.training.config import LoRAConfig
from tests.tiny_models import tiny_unet_sdxl


def layers(dtype: torch.dtype = torch.float32, *, adapters: tuple[str, ...] = ("default",), **config) -> nn.Module:
    """Two linear layers with LoRA of random B."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 6, bias=False)).to(dtype)
    for name in adapters:
        settings = LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"], **config)
        model = inject_adapter_in_model(settings, model, adapter_name=name)
    for layer in model.modules():
        if isinstance(layer, lora.LoraLayer):
            layer.set_adapter(list(adapters))
            for of in layer.lora_B.values():
                nn.init.normal_(of.weight)
    return model


def outcome(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input, gradients of the weights."""
    x = x.clone().requires_grad_(True)
    torch.manual_seed(1)
    result = model(x)
    result.double().square().sum().backward()
    return [result, x.grad, *(value.grad for value in model.parameters() if value.grad is not None)]


def counted(monkeypatch) -> list[str]:
    """Calls of peft's own forward."""
    calls, forward = [], lora.Linear.forward
    monkeypatch.setattr(lora.Linear, "forward", lambda self, *a, **k: calls.append("peft") or forward(self, *a, **k))
    return calls


@pytest.mark.parametrize(
    ("adapters", "config", "shape"),
    [
        (("default",), {}, (5, 12)),
        (("default",), {"lora_dropout": 0.3}, (2, 3, 12)),
        (("default",), {"use_rslora": True}, (2, 3, 2, 12)),
        (("start", "default"), {}, (2, 3, 12)),
    ],
)
def test_the_numbers_are_those_of_peft(adapters, config, shape, monkeypatch) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    model = layers(torch.float64, adapters=adapters, **config).to(torch.float64)
    expected = outcome(model, x)
    model.zero_grad()
    fuse_lora(model)
    calls = counted(monkeypatch)
    found = outcome(model, x)
    assert not calls
    assert len(found) == len(expected) >= 6
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_at_least_as_near_to_the_exact_result_as_peft_is() -> None:
    model, x = layers(torch.bfloat16), torch.randn(64, 12)
    for layer in model.modules():
        if isinstance(layer, lora.LoraLayer):
            layer.lora_A.float(), layer.lora_B.float()
    errors = []
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        for change in (lambda module: None, fuse_lora):
            change(model)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                result = model(x)
            assert result.dtype == torch.bfloat16
            errors.append(float((result - exact).abs().mean() / exact.abs().mean()))
    assert errors[1] <= 1.05 * errors[0]
    assert errors[1] < 0.01


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12)])
def test_an_adapter_that_starts_adds_exactly_nothing(shape) -> None:
    model = layers()
    x = torch.randn(shape)
    fuse_lora(model)
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            nn.init.zeros_(layer.lora_B["default"].weight)
    on = model(x)
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.enable_adapters(False)
    assert torch.equal(on, model(x))


@pytest.mark.parametrize(
    ("why", "config", "dtype"),
    [
        ("dora", {"use_dora": True}, torch.float32),
        ("lora bias", {"lora_bias": True}, torch.float32),
        ("another precision than the layer's, without autocast", {}, torch.bfloat16),
    ],
)
def test_what_it_does_not_know_goes_to_peft(why, config, dtype, monkeypatch) -> None:
    model = layers(dtype, **config)
    for layer in model.modules():
        if isinstance(layer, lora.LoraLayer):
            layer.lora_A.float(), layer.lora_B.float()
    x = torch.randn(3, 12, dtype=dtype)
    expected = model(x)
    fuse_lora(model)
    calls = counted(monkeypatch)
    assert torch.equal(model(x), expected), why
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_runs_without_weights(dtype) -> None:
    """Operations are counted and memory is predicted on the meta device, which knows no autocast."""
    model = layers(dtype)
    for layer in model.modules():
        if isinstance(layer, lora.LoraLayer):
            layer.lora_A.float(), layer.lora_B.float()
    fuse_lora(model.to("meta"))
    assert model(torch.empty(3, 12, dtype=dtype, device="meta")).shape == (3, 6)


def test_adapters_that_are_off_or_merged_go_to_peft() -> None:
    model, x = layers(torch.float64).double(), torch.randn(3, 12, dtype=torch.float64)
    base = nn.Sequential(*(getattr(layer, "base_layer", layer) for layer in model))(x)
    fuse_lora(model)
    on = model(x)
    assert not torch.allclose(on, base)
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.merge()
    torch.testing.assert_close(model(x), on)
    for layer in model.modules():
        if isinstance(layer, FusedLinear):
            layer.unmerge()
            layer.enable_adapters(False)
    torch.testing.assert_close(model(x), base)


def test_every_linear_layer_of_a_trained_denoiser_is_fused() -> None:
    unet = tiny_unet_sdxl()
    make_trainable(unet, LoRAConfig(rank=4, targets=["to_q", "to_v", "conv1"]))
    kinds = [type(layer) for layer in unet.modules() if isinstance(layer, lora.LoraLayer)]
    assert kinds.count(FusedLinear) > 0
    assert lora.Linear not in kinds
    assert lora.Conv2d in kinds
