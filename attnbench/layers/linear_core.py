"""The two matrix products of linear attention, their order, and Eq. 4's denominator."""

from __future__ import annotations

from typing import Literal

import torch

from attnbench.contract import AttentionSite, MacCount

Association = Literal["auto", "linear", "quadratic"]


def matmul_order(association: Association, num_tokens: int, head_dim: int) -> Literal["linear", "quadratic"]:
    """Resolve `auto` to the cheaper order: q (k^T v) costs N C D, (q k^T) v costs N^2 C a product.

    >>> matmul_order("auto", 256, 384), matmul_order("auto", 4096, 32)
    ('quadratic', 'linear')
    """
    if association != "auto":
        return association
    return "quadratic" if num_tokens < head_dim else "linear"


def contraction(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, association: Association = "auto"
) -> torch.Tensor:
    """Compute q k^T v without normalisation in the chosen order; all [..., N, D].

    The two orders differ by rounding only. Matmuls run in the inputs' dtype (they accumulate in
    fp32 on every device).
    """
    if matmul_order(association, q.shape[-2], q.shape[-1]) == "linear":
        return q @ (k.transpose(-2, -1) @ v)
    return (q @ k.transpose(-2, -1)) @ v


def contraction_macs(site: AttentionSite, association: Association) -> MacCount:
    """Multiply-adds of `contraction` at a site, as executed and in the cheaper order."""
    n, c, d = site.num_tokens, site.dim, site.head_dim
    cost = {"linear": 2 * n * c * d, "quadratic": 2 * n * n * c}
    return MacCount(attention=cost[matmul_order(association, n, d)], attention_cheaper=min(cost.values()))


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    eps: float,
    association: Association = "auto",
) -> torch.Tensor:
    """Normalised linear attention on non-negative features, all [B, H, N, D].

    o_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps); the sum over keys and the division in
    fp32 for half types. Source: arXiv:2601.13683, eq. 4; eps after Sana's released code.
    """
    out = contraction(q, k, v, association)
    return (out / (key_mass(q, k) + eps)).to(v.dtype)


def key_mass(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Eq. 4's denominator q_i . sum_j k_j in at least fp32: [..., N, D] -> [..., N, 1]."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    # elementwise on purpose: autocast would run a matmul here in half precision
    return (q * k.sum(-2, keepdim=True, dtype=dtype)).sum(-1, keepdim=True)
