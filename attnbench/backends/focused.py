"""Focused linear attention (Flatten Transformer): a norm-preserving power before linear attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    DepthwiseConv,
    QKVProjection,
    contraction_macs,
    linear_attention,
    merge_heads,
    power_focus,
    split_heads,
)

FLOOR = 1e-6  # added after the ReLU, so that no row is dead (released code)


class FocusedOptions(attnbench.BackendOptions):
    """Options of `focused`."""

    power: float = Field(default=3.0, ge=1.0)
    """Focusing factor p."""
    kernel_size: Literal[3, 5, 7] = 5
    """Side of the depthwise convolution on the values."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator q . mean(k)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class FocusedAttention(nn.Module):
    """phi_p(q) (phi_p(k)^T v) / (phi_p(q) . sum phi_p(k)) + DWC(v).

    x' = (ReLU(x) + 1e-6) / softplus(s); phi_p(x) = x'^p / ||x'^p|| ||x'||, norms over the full
    width before the head split; keys get a learned positional encoding first; one depthwise
    convolution on head channels is shared by the heads. [B, N, C] -> [B, N, C]; phi and the
    denominator in fp32. Source: arXiv:2308.00442, eq. 5-7, and its released code.
    """

    def __init__(self, site: attnbench.AttentionSite, options: FocusedOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.scale = nn.Parameter(torch.zeros(site.dim))
        self.position = nn.Parameter(torch.zeros(site.num_tokens, site.dim))
        self.conv = DepthwiseConv(site.head_dim, options.kernel_size)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = self._focus(q), self._focus(k + self.position)
        heads = [split_heads(z, self.num_heads) for z in (q, k, v)]  # [B, H, N, D]
        # eps is added to q . mean(k) in the released code, hence N eps beside q . sum(k)
        eps = self.options.eps * x.shape[1]
        o = linear_attention(*heads, eps=eps, association=self.options.association)
        return self.out(merge_heads(o) + self.conv(v, context.grid))

    def _focus(self, z: torch.Tensor) -> torch.Tensor:
        power = self.scale.new_full((1,), self.options.power)
        return power_focus((z.relu() + FLOOR) / F.softplus(self.scale).to(z.dtype), power)


def macs(site: attnbench.AttentionSite, options: FocusedOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, k^2 N C for the convolution, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    linear = 4 * n * c * c + options.kernel_size**2 * n * c
    return attnbench.MacCount(linear=linear) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `focused`."""
    yield attnbench.AttentionBackend(
        name="focused",
        summary="focused linear attention with a depthwise convolution on the values",
        family="linear",
        source="Flatten Transformer arXiv:2308.00442",
        options=FocusedOptions,
        build=FocusedAttention,
        macs=macs,
        complexity="linear",
    )
