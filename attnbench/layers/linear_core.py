"""The two matrix products of linear attention, their order, and Eq. 4's denominator."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.autograd import forward_ad

from attnbench.contract import AttentionSite, MacCount
from attnbench.layers.linear_blocks import Terms, blocked_attention, divided, key_mass, unblocked
from attnbench.layers.precision import compute_dtype

__all__ = [
    "Association",
    "contraction",
    "contraction_macs",
    "key_mass",
    "linear_attention",
    "matmul_order",
]

MANY_TOKENS = {torch.float32: 256, torch.float64: 256, torch.bfloat16: 512}
"""Types a CPU computes in blocks, from so many queries on: with fewer, calls cost more than copies."""
WIDEST_HALF_HEAD = 128
"""Channels of a head, at most, in a half type: in wider ones products dominate, which are no faster so."""

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
    fp32 on every device); on a CPU many tokens are taken block by block (`linear_blocks`).
    """
    if matmul_order(association, q.shape[-2], q.shape[-1]) == "quadratic":
        return (q @ k.transpose(-2, -1)) @ v
    terms = Terms(q, k, v, None, None, normalise=False, rectify=False, eps=0.0)
    return blocked_attention(terms) if takes_blocks(terms) else unblocked(terms)


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
    mass: tuple[torch.Tensor, torch.Tensor] | None = None,
    rectify: bool = False,
) -> torch.Tensor:
    """Normalised linear attention on non-negative features, q, k [B, H, N or M, Dk], v [B, H, M, Dv].

    o_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + eps); the sum over keys and the division in
    fp32 for half types. `mass` are the queries and keys of the denominator where they are others (of a
    rotation that acts on the numerator alone, say); `rectify` passes q and k through a ReLU first, which
    here needs no memory. Returns [B, H, N, Dv] in v's dtype; on a CPU many tokens are taken block by block
    (`linear_blocks`), and merging the heads then copies nothing.
    Source: arXiv:2601.13683, eq. 4; eps after Sana's released code.
    """
    if rectify and mass is not None:
        raise ValueError("rectify is for queries and keys that the denominator shares, got a mass, too")
    mass_q, mass_k = mass or (None, None)
    terms = Terms(q, k, v, mass_q, mass_k, normalise=True, rectify=rectify, eps=eps)
    if matmul_order(association, q.shape[-2], q.shape[-1]) == "linear":
        return blocked_attention(terms) if takes_blocks(terms) else unblocked(terms)
    if rectify:
        q, k = q.relu(), k.relu()
    out = (q @ k.transpose(-2, -1)) @ v
    return divided(out, *(mass or (q, k)), eps).to(v.dtype)


def takes_blocks(terms: Terms) -> bool:
    """Say whether these are computed block by block: many tokens, all of one type, on a CPU.

    Compilers and tracers fuse or count whole operations, torch.func and forward-mode derivatives follow
    them, and autocast chooses their types: all of these see the formula.
    """
    q, k, v = terms.q, terms.k, terms.v
    return (
        not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and q.is_cpu
        and q.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.dtype == k.dtype == v.dtype
        and q.shape[2] >= MANY_TOKENS.get(q.dtype, math.inf)
        and (q.element_size() >= 4 or _half_gains(terms))
        and compute_dtype(q) == q.dtype
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def _half_gains(terms: Terms) -> bool:
    """Say whether a half type gains: not where products dominate, which the backward pass makes in fp32."""
    q, k, v = terms[:3]
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return max(q.shape[3], v.shape[3]) <= WIDEST_HALF_HEAD and (terms.normalise or not trains)
