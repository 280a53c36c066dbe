"""Performer: softmax attention estimated with positive orthogonal random features (FAVOR+)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, PositiveInt
from torch import nn

import attnbench
from attnbench.layers import (
    QKVProjection,
    linear_attention,
    merge_heads,
    split_heads,
    without_autocast,
)


class PerformerOptions(attnbench.BackendOptions):
    """Options of `performer`."""

    num_features: PositiveInt = 256
    """Random features M of each query and key (released code: 256)."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to every feature, so that no denominator vanishes (released code: 1e-6)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""


class PerformerAttention(nn.Module):
    """o_i = phi(q_i) (sum_j phi(k_j)^T v_j) / (phi(q_i) . sum_j phi(k_j)), an estimate of softmax attention.

    phi_m(z) = exp(w_m . z - |z|^2 / 2 - s) + eps for z = q / D^(1/4) or k / D^(1/4): E[phi(q) . phi(k)]
    is proportional to exp(q . k / sqrt(D)). The stabiliser s is max_m(w_m . z) for a query, its maximum
    over the tokens of one image and head for keys; the 1/sqrt(M) of the paper cancels.
    [B, N, C] -> [B, N, C]; phi and the denominator in at least fp32. The features w [M, D] are a buffer,
    drawn once at build and shared by the heads. Unlike the released code they are not drawn again at
    each call, the stabiliser has no gradient (with it the gradient differs by O(eps)), and no second
    constant guards the denominator, which is at least N M eps^2.
    Source: arXiv:2009.14794, sec. 2.2-2.4 (Lemma 1); released code
    (google-research/performer/fast_attention/jax) read.
    """

    features: torch.Tensor

    def __init__(self, site: attnbench.AttentionSite, options: PerformerOptions) -> None:
        super().__init__()
        self.num_heads, self.eps = site.num_heads, options.eps
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.register_buffer("features", orthogonal_features(options.num_features, site.head_dim))

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        q = positive_features(q, self.features, self.eps, over=(-1,)).to(v.dtype)  # [B, H, N, M]
        k = positive_features(k, self.features, self.eps, over=(-2, -1)).to(v.dtype)
        return self.out(merge_heads(linear_attention(q, k, v, eps=0.0, association="linear")))


def orthogonal_features(num_features: int, head_dim: int) -> torch.Tensor:
    """Draw [M, D] Gaussian rows that are orthogonal within blocks of D, from torch's current stream.

    Directions are rows of uniformly distributed orthogonal matrices, lengths those of independent
    Gaussian vectors. LAPACK's QR fixes the sign of each direction's leading part, which biases the
    estimate (the released code leaves it so); times the signs of R's diagonal the rows are uniform.
    Source: arXiv:2009.14794, sec. 2.4; Mezzadri arXiv:math-ph/0609050.
    """
    blocks = []
    for _ in range(0, num_features, head_dim):
        q, r = torch.linalg.qr(torch.randn(head_dim, head_dim))
        blocks.append((q * r.diagonal().sign()).T)
    directions = torch.cat(blocks)[:num_features]
    lengths = torch.randn(num_features, head_dim).norm(dim=-1, keepdim=True)
    return directions * lengths


def positive_features(
    z: torch.Tensor, features: torch.Tensor, eps: float, over: tuple[int, ...]
) -> torch.Tensor:
    """phi of `PerformerAttention` in at least fp32: [B, H, N, D] and [M, D] -> [B, H, N, M].

    `over` are the axes of the result that share one stabiliser. Source: arXiv:2009.14794, Lemma 1.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    with without_autocast(z):  # a rounded exponent is a relative error of the feature
        z = z.to(dtype) * z.shape[-1] ** -0.25
        projected = z @ features.to(dtype).T
    peak = projected.detach().amax(over, keepdim=True)
    half_square = z.square().sum(-1, keepdim=True) / 2
    return (projected - (half_square + peak)).exp() + eps


def macs(site: attnbench.AttentionSite, options: PerformerOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N M C for the features, 2 N M C for the attention."""
    n, c, m = site.num_tokens, site.dim, options.num_features
    linear_order = 2 * n * m * c
    quadratic_order = n * n * (site.num_heads * m + c)
    return attnbench.MacCount(
        linear=4 * n * c * c,
        unhooked=2 * n * m * c,
        attention=linear_order,
        attention_cheaper=min(linear_order, quadratic_order),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `performer`."""
    yield attnbench.AttentionBackend(
        name="performer",
        summary="Performer: softmax attention through positive random features",
        family="linear",
        source="Performer arXiv:2009.14794 (FAVOR+), sec. 2",
        options=PerformerOptions,
        symmetry="permutation",
        build=PerformerAttention,
        macs=macs,
        complexity="linear",
    )
