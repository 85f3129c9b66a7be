"""The cross-modal layers of MPS: multi-query attention to the prompt, then a parallel attention and feed-forward block.

Facts of Kwai-Kolors/MPS, trainer/models/cross_modeling.py: layer norms without a learned bias (a zero buffer in the
file), heads 64 wide, one key and value for all heads (arXiv 1911.02150), SwiGLU (arXiv 2002.05202), attention and
feed-forward in parallel, rotary positions in the second block (arXiv 2104.09864).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64


class PlainNorm(nn.Module):
    """Layer norm with a learned scale; the bias is a buffer of zeros, which the published file holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, states: Tensor) -> Tensor:
        return functional.layer_norm(states, states.shape[-1:], self.weight, self.get_buffer("bias"))


class Gate(nn.Module):
    """SwiGLU: value * silu(gate)."""

    def forward(self, states: Tensor) -> Tensor:
        value, gate = states.chunk(2, dim=-1)
        return functional.silu(gate) * value


class ToPrompt(nn.Module):
    """Attention from picture tokens to prompt tokens plus a feed-forward on the same normalised input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = PlainNorm(width)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(width, 8 * width, bias=False), Gate(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, states: Tensor, prompt: Tensor, seen: Tensor) -> Tensor:
        states = self.norm(states)
        query = _heads(self.to_q(states), self.heads)
        key, value = self.to_kv(prompt).chunk(2, dim=-1)
        return self.to_out(_attend(query, key, value, seen[:, None, None, :])) + self.ff(states)


class Parallel(nn.Module):
    """Self-attention with rotary positions and a feed-forward, from one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.parts = heads, (heads * HEAD, HEAD, HEAD, 8 * width)
        self.norm = PlainNorm(width)
        self.rotary_emb = nn.Module()
        self.rotary_emb.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, HEAD, 2) / HEAD))
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.parts), bias=False)
        self.attn_out = nn.Linear(heads * HEAD, width, bias=False)
        self.ff_out = nn.Sequential(Gate(), nn.Linear(4 * width, width, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        query, key, value, hidden = self.fused_attn_ff_proj(self.norm(states)).split(self.parts, dim=-1)
        angles = torch.arange(states.shape[1], device=states.device)[:, None] * self.rotary_emb.get_buffer("inv_freq")
        angles = torch.cat([angles, angles], dim=-1).to(states.dtype)
        query, key = _turn(_heads(query, self.heads), angles), _turn(key, angles)
        return self.attn_out(_attend(query, key, value, None)) + self.ff_out(hidden)


class Residual(nn.Module):
    """x + fn(x, ...); its name is in the published keys."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, states: Tensor, *others: Tensor) -> Tensor:
        return states + self.fn(states, *others)


class Fusion(nn.Module):
    """Picture tokens after ``layers`` times attention to the prompt and to themselves."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([Residual(ToPrompt(width, heads)), Residual(Parallel(width, heads))]) for _ in range(layers)
        )

    def forward(
        self,
        pictures: Float[Tensor, "batch patches width"],
        prompts: Float[Tensor, "batch tokens width"],
        seen: Bool[Tensor, "batch tokens"],
    ) -> Float[Tensor, "batch patches width"]:
        """``seen``: prompt tokens that may be attended to."""
        for pair in self.layers:
            to_prompt, parallel = pair.children()
            pictures = parallel(to_prompt(pictures, prompts, seen))
        return pictures


def _heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, HEAD)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """All heads of ``query`` [batch, heads, tokens, 64] share one key and value [batch, tokens, 64]."""
    key, value = (each[:, None].expand(-1, query.shape[1], -1, -1) for each in (key, value))
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return out.transpose(1, 2).flatten(2)


def _turn(states: Tensor, angles: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
