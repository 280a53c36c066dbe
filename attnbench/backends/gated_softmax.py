"""Softmax attention whose heads' outputs pass a sigmoid gate, from "Gated Attention for LLMs"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads


class GatedSoftmaxOptions(attnbench.BackendOptions):
    """Options of `gated-softmax`."""

    gate: Literal["elementwise", "headwise"] = "elementwise"
    """`elementwise`: a factor for each channel of each head; `headwise`: one factor a head."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection and of the gate, as in the released code (DiT: yes)."""


class GatedSoftmaxAttention(nn.Module):
    """sigmoid(x W_g) * softmax(q k^T / sqrt(D)) v per head, then an output projection.

    [B, N, C] -> [B, N, C]. The gate of a token comes from the same input as its query (the block's
    normalised x), multiplies before the heads are merged and projected, and is computed in x's dtype.
    Of the paper's gates this is the one it settles on, behind the attention; its others (on query, key,
    value or behind the output projection) are not here. The paper's models are causal, a mask that an
    image does not have, and the release's RMSNorm and rotary turn of q and k are Qwen3's, not the
    gate's: left out.
    The release makes the gate as more rows of the query's matrix, here it is a matrix of its own, so that the
    shared projection starts like everybody's: DiT's Xavier-uniform for both, gates near 1/2 at the start.
    Source: arXiv:2505.06708, abstract and Y' = Y sigmoid(X W) (the whole paper was not read); released code
    (qiuzh20/gated_attention, modeling_qwen3.py), read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: GatedSoftmaxOptions) -> None:
        super().__init__()
        self.num_heads = site.num_heads
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.gate = nn.Linear(site.dim, _gates(site, options), bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        gate = split_heads(self.gate(x), self.num_heads).sigmoid()  # [B, H, N, D or 1]
        context.record("gate", gate)
        return self.out(merge_heads(gate * F.scaled_dot_product_attention(q, k, v)))


def _gates(site: attnbench.AttentionSite, options: GatedSoftmaxOptions) -> int:
    return site.dim if options.gate == "elementwise" else site.num_heads


def macs(site: attnbench.AttentionSite, options: GatedSoftmaxOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, N C^2 or N C H for the gate, 2 N^2 C for the attention."""
    n, c = site.num_tokens, site.dim
    return attnbench.MacCount(linear=4 * n * c * c + n * c * _gates(site, options), attention=2 * n * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `gated-softmax`."""
    yield attnbench.AttentionBackend(
        name="gated-softmax",
        summary="softmax attention with a sigmoid gate on each head's output",
        source="arXiv:2505.06708; released code",
        options=GatedSoftmaxOptions,
        build=GatedSoftmaxAttention,
        macs=macs,
        complexity="quadratic",
        symmetry="permutation",
        family="softmax",
    )
