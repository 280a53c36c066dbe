"""LinFusion's generalised linear attention: queries and keys from tokens that a small network has moved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction_macs,
    elu_plus_one,
    linear_attention,
    merge_heads,
    split_heads,
)


class LinFusionOptions(attnbench.BackendOptions):
    """Options of `linfusion`."""

    mid_dim: PositiveInt | None = None
    """Width between the two layers that move queries, and of those that move keys; null: the model's
    (released models)."""
    qkv_bias: bool = False
    """Bias of the query, key, value projection (released models: none, as in Stable Diffusion)."""
    eps: float = Field(default=1e-4, gt=0.0)
    """Added to the denominator q . mean(k) (released code: 1e-4)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class Shift(nn.Module):
    """x + W_2 LeakyReLU(LayerNorm(W_1 x)), a token at a time: [B, N, C] -> [B, N, C]."""

    def __init__(self, dim: int, mid_dim: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, mid_dim)
        self.norm = nn.LayerNorm(mid_dim)
        self.leave = nn.Linear(mid_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.leave(F.leaky_relu(self.norm(self.enter(x))))


class LinFusionAttention(nn.Module):
    """o_i = q_i (sum_j k_j^T v_j) / (q_i . sum_j k_j + N eps) of q = phi(W_q s_q(x)), k = phi(W_k s_k(x)).

    Per head; phi = elu + 1; s(x) = x + W_2 LeakyReLU(LayerNorm(W_1 x)) (slope 0.01), one for queries and one
    for keys; v = W_v x. [B, N, C] -> [B, N, C]; phi, the sum over keys and the division in at least fp32.
    The state is that of any normalised linear attention; what is general is the map from tokens to q and k.
    Source: LinFusion arXiv:2409.02097; the formula is read from the released code (Huage001/LinFusion,
    src/linfusion/attention.py), its default widths from linfusion.py, of the paper the abstract.
    """

    def __init__(self, site: attnbench.AttentionSite, options: LinFusionOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        mid_dim = options.mid_dim or site.dim
        self.shift_q, self.shift_k = Shift(site.dim, mid_dim), Shift(site.dim, mid_dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        v = split_heads(self.qkv.part(x, 2, 3), self.num_heads)  # [B, H, N, D]
        projected = self.qkv.part(self.shift_q(x), 0, 1), self.qkv.part(self.shift_k(x), 1, 2)
        q, k = (split_heads(elu_plus_one(z).to(v.dtype), self.num_heads) for z in projected)
        # eps is added to q . mean(k) in the released code, hence N eps beside q . sum(k)
        eps = self.options.eps * x.shape[1]
        o = linear_attention(q, k, v, eps=eps, association=self.options.association)
        return self.out(merge_heads(o))


def macs(site: attnbench.AttentionSite, options: LinFusionOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 4 N C M for the shifts of width M, 2 N C min(N, D) for the attention."""
    n, c, mid_dim = site.num_tokens, site.dim, options.mid_dim or site.dim
    # q, k and v are Linear layers of their own in the released code, where module hooks see them
    moves = attnbench.MacCount(linear=4 * n * c * (c + mid_dim), norm=2 * 4 * n * mid_dim)
    return moves + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `linfusion`."""
    yield attnbench.AttentionBackend(
        name="linfusion",
        summary="LinFusion: elu + 1 linear attention on tokens moved by a small network",
        source="LinFusion arXiv:2409.02097; released code",
        options=LinFusionOptions,
        symmetry="permutation",
        family="linear",
        build=LinFusionAttention,
        macs=macs,
        complexity="linear",
    )
