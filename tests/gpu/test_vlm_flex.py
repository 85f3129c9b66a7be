"""FlexAttention over packed rows on a GPU: log-probs and gradients are those of the dense mask."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.adapters import VLMAdapter, VLMPolicy
from mmalign.references import FrozenReference
from tests.vlm.tiny_vlms import tiny_vlm
from tests.vlm.vlm_batches import pair_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: on a CPU it has no backward"),
]
# Its kernels want heads of at least 16.
WIDER: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}


def scored(attention: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probs, log-ratios and gradients of every trained weight, in float32."""
    batch = pair_batch(tiny_vlm("llava", **WIDER), "llava")
    batch = batch.changed(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor).to("cuda")
    model = tiny_vlm("llava", dtype=torch.float32, attention=attention, **WIDER).cuda()
    scores = VLMAdapter("always", row_tokens=150).score(VLMPolicy(model), FrozenReference(model), batch)
    (scores.chosen_logp - 2 * scores.rejected_logp).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return scores.chosen_logp.detach(), scores.chosen_logratio.detach(), gradients


def test_flex_attention_gives_the_log_probs_and_gradients_of_the_dense_mask() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    expected, _, dense = scored("sdpa")
    found, ratios, flex = scored({"text_config": "flex_attention", "": "sdpa"})  # as load_vlm asks for it
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert ratios.abs().max() < 1e-4
    assert flex.keys() == dense.keys()
    largest = max(float(value.abs().max()) for value in dense.values())
    for name, value in dense.items():
        torch.testing.assert_close(flex[name], value, rtol=0, atol=1e-3 * largest, msg=name)
