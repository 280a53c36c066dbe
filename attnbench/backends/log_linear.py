"""Log-linear attention: gated linear attention with a state for every level of a binary tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import attnbench
from attnbench.layers import (
    ChunkSize,
    DepthwiseConv,
    GatedNorm,
    LearnedDecay,
    QKVProjection,
    log_linear_attention,
    log_linear_macs,
    merge_heads,
    num_levels,
    softplus,
    split_heads,
)


class LogLinearOptions(attnbench.BackendOptions):
    """Options of `log-linear`."""

    qkv_bias: bool = False
    """Bias of the query, key, value projection."""
    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise convolution on queries, keys and values, on the grid of tokens."""
    chunk_size: ChunkSize = 32
    """Tokens within which scores are formed, a power of two; above it states are read."""


class LogLinearAttention(nn.Module):
    """Log-linear Mamba-2 in both directions over the tokens, [B, N, C] -> [B, N, C].

    Mamba-2 is linear attention whose state forgets, one factor a head and token. Here a token reads not one
    state of all that came before but one for each bucket of a Fenwick tree, the nearer the smaller, each with
    its own weight: o_i = sum_j w_i[l(i, j)] d(i, j) (q_i . k_j) dt_j v_j, d the product of the decays between
    i and j, l(i, j) the level at which i and j meet. Multiply-adds grow as N log N.
    q, k, v = SiLU(conv(W x)); dt = softplus(W_t x + bias), decay exp(-exp(A) dt); w = softplus(L * W_w x), L
    a number for each head and level, 1 at first; output W_o RMSNorm((o + D v) * SiLU(W_z x)). Scores, states,
    gates and norm in at least fp32. A starts as Mamba-2's, uniform in (1, 16] (released: 1 ... H).

    For images: the paper's layer is causal, and no paper on it for images was found. Its mask of decays and
    levels is continued above the diagonal by its mirror image, as LION does it for decays: the tree is the
    same from both ends, and in every block a token's bucket is the half that it is not in, earlier or later.
    So all tokens see all, each pair counts once, and a token needs no second set of weights or decays. The
    tree is over row-major positions: its blocks are parts of rows, then rows, then bands of rows. The
    causal convolution over four tokens becomes a depthwise one on the grid. Queries, keys and values are as
    wide as the model, from the shared projection (the released layer: values twice as wide, one query and
    key of 128 channels for all heads); the output projection has a bias, like everybody's here. The weights
    are as many as the grid needs (released: enough for 16,384 tokens), so that another number of levels does
    not fit a trained module. The paper's other variant, log-linear Gated DeltaNet, is not here.
    Source: arXiv:2506.04761, abstract (the whole paper was not read); its released code
    (HanGuo97/log-linear-attention) and flash-linear-attention's LogLinearMamba2, read. LION arXiv:2502.16249,
    abstract.
    """

    def __init__(self, site: attnbench.AttentionSite, options: LogLinearOptions) -> None:
        super().__init__()
        dim, heads, levels = site.dim, site.num_heads, num_levels(site.num_tokens)
        self.num_heads, self.options = heads, options
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.conv = DepthwiseConv(3 * dim, options.kernel_size, bias=False)
        self.step = nn.Linear(dim, heads, bias=False)
        self.decay = LearnedDecay(1, heads, least=1.0)
        self.level = nn.Linear(dim, heads * levels, bias=False)
        self.level_scale = nn.Parameter(torch.ones(heads, levels))
        self.skip = nn.Parameter(torch.ones(heads, 1))
        self.gate = nn.Linear(dim, dim, bias=False)
        self.norm = GatedNorm(dim, "silu", gate_first=True)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        mixed = F.silu(self.conv(self.qkv.qkv(x), context.grid))  # one convolution for all three
        q, k, v = (split_heads(z, self.num_heads) for z in mixed.chunk(3, -1))  # [B, H, N, D]
        (log_decay,), (step,) = self.decay(self.step(x))  # [B, H, N, 1]
        levels = softplus(self.level_scale.flatten().to(step) * self.level(x).to(step))  # [B, N, H L]
        weights = rearrange(levels, "b n (h l) -> b h n l", h=self.num_heads)
        context.record("level_weight", weights)
        o = log_linear_attention(q, k, step * v, log_decay, weights, chunk_size=self.options.chunk_size)
        o = merge_heads((o + self.skip[:, None] * v).to(v.dtype))
        return self.out(self.norm(o, self.gate(x)))


def macs(site: attnbench.AttentionSite, options: LogLinearOptions) -> attnbench.MacCount:
    """5 N C^2 for the projections, the steps and level weights, the convolution, the tree."""
    n, c, heads = site.num_tokens, site.dim, site.num_heads
    per_token = 5 * c * c + c * heads * (1 + num_levels(n)) + options.kernel_size**2 * 3 * c
    per_head = log_linear_macs(n, site.head_dim, site.head_dim, options.chunk_size)
    return attnbench.MacCount(linear=n * per_token, attention=heads * per_head)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `log-linear`."""
    yield attnbench.AttentionBackend(
        name="log-linear",
        summary="log-linear Mamba-2: a state for every level of a Fenwick tree, both ways",
        source="arXiv:2506.04761; released code",
        options=LogLinearOptions,
        build=LogLinearAttention,
        macs=macs,
        complexity="subquadratic",
        family="sequential",
    )
