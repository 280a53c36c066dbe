"""Attention through a few pooled tokens: what agent attention and attention mediators share."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from attnbench.layers.agent_bias import PositionBias
from attnbench.layers.precision import compute_dtype
from attnbench.layers.projection import merge_heads, split_heads


def pool_tokens(q: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Average queries [B, N, C] over side x side cells of the grid (adaptive pooling): [B, side^2, C]."""
    image = q.transpose(1, 2).unflatten(2, grid)  # [B, C, height, width]
    return F.adaptive_avg_pool2d(image, side).flatten(2).transpose(1, 2)


def agent_softmax(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agents: torch.Tensor,
    num_heads: int,
    *,
    gather_bias: PositionBias | None = None,
    spread_bias: PositionBias | None = None,
) -> torch.Tensor:
    """softmax(q A^T / sqrt(D) + B2) softmax(A k^T / sqrt(D) + B1) v per head.

    q, k, v [B, N, C] and agents A [B, n, C] -> [B, N, C]; both softmaxes through SDPA with an additive
    bias, for which torch 2.13 takes its unfused kernel on the CPU.
    Source: Agent Attention arXiv:2312.08874, eq. 5-6, and its released code.
    """
    to_tokens, to_agents = _mask(gather_bias, q), _mask(spread_bias, q)  # [H, n, N]
    agents, q, k, v = (split_heads(z, num_heads) for z in (agents, q, k, v))  # [B, H, n or N, D]
    gathered = F.scaled_dot_product_attention(agents, k, v, attn_mask=to_tokens)
    to_agents = None if to_agents is None else to_agents.transpose(-2, -1)
    return merge_heads(F.scaled_dot_product_attention(q, agents, gathered, attn_mask=to_agents))


def _mask(bias: PositionBias | None, q: torch.Tensor) -> torch.Tensor | None:
    """Return the bias as SDPA wants its mask: in the dtype the queries will have."""
    return None if bias is None else bias().to(compute_dtype(q))
