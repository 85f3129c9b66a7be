"""``training.compile``: which blocks are compiled, that they say the same, and that switching adapters is free."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from mmalign.models import make_trainable
from mmalign.references import FrozenReference, LoRAOffReference
from mmalign.training.compiling import VERSIONS, compile_blocks, compile_for_training
from mmalign.training.config import LoRAConfig
from tests.tiny_models import tiny_transformer_flux, tiny_transformer_sd3, tiny_unet_sdxl


@pytest.fixture(autouse=True)
def _limit_put_back():
    with torch._dynamo.config.patch(recompile_limit=VERSIONS):
        yield


def compiled(module: nn.Module) -> set[str]:
    return {type(child).__name__ for child in module.modules() if child._compiled_call_impl is not None}


def unet_with_lora() -> nn.Module:
    unet = tiny_unet_sdxl()
    torch.manual_seed(0)
    for parameter in make_trainable(unet, LoRAConfig(rank=4)):
        nn.init.normal_(parameter, std=0.1)
    return unet


def predict(unet: nn.Module) -> torch.Tensor:
    torch.manual_seed(0)
    pooled = unet.config["projection_class_embeddings_input_dim"] - 6 * unet.config["addition_time_embed_dim"]
    more = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.randn(2, 6)}
    width = unet.config["cross_attention_dim"]
    return unet(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 5, width), added_cond_kwargs=more)[0]


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (tiny_unet_sdxl, {"BasicTransformerBlock", "ResnetBlock2D"}),
        (tiny_transformer_sd3, {"JointTransformerBlock"}),
        (tiny_transformer_flux, {"FluxTransformerBlock", "FluxSingleTransformerBlock"}),
    ],
)
def test_the_innermost_blocks_are_compiled_and_keep_their_names(make, blocks) -> None:
    module = make()
    names = list(module.state_dict())
    count = compile_blocks(module)
    assert compiled(module) == blocks
    assert count == sum(type(child).__name__ in blocks for child in module.modules())
    assert list(module.state_dict()) == names


def test_a_model_without_blocks_is_compiled_whole() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    assert compile_blocks(module, backend="eager") == 0
    assert compiled(module) == {"Sequential"}


def test_switching_adapters_off_and_on_compiles_nothing_anew() -> None:
    """Two versions of each kind of block are made, and the next ten steps make none."""
    torch._dynamo.reset()
    plain, unet, counter = unet_with_lora(), unet_with_lora(), CompileCounter()
    compile_blocks(unet, backend=counter)
    made = []
    for _ in range(3):
        on = predict(unet)
        on.sum().backward()
        unet.disable_adapters()
        with torch.no_grad():
            off = predict(unet)
        unet.enable_adapters()
        made.append(counter.frame_count)
    assert made[0] == made[1] == made[2] > 0
    torch.testing.assert_close(on, predict(plain))
    plain.disable_adapters()
    torch.testing.assert_close(off, predict(plain))
    assert not torch.allclose(on, off)


def test_policy_and_reference_are_compiled_alike() -> None:
    torch._dynamo.config.recompile_limit = 8
    unet = tiny_unet_sdxl()
    frozen = FrozenReference(unet)
    compile_for_training(unet, frozen)
    assert compiled(unet) == compiled(frozen.module) == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert torch._dynamo.config.recompile_limit == VERSIONS
    adapted = unet_with_lora()
    compile_for_training(adapted, LoRAOffReference(adapted))
    assert compiled(adapted) == {"BasicTransformerBlock", "ResnetBlock2D"}
    assert compiled(copy.deepcopy(adapted)) == set()
