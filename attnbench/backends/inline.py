"""InLine attention: linear attention made injective by a subtraction, and local by predicted filters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, field_validator
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction,
    contraction_macs,
    merge_heads,
    predicted_convolution,
    split_heads,
)


class InLineOptions(attnbench.BackendOptions):
    """Options of `inline`."""

    kernel_size: PositiveInt = 3
    """Side of the local filters predicted for each image; odd (paper: 3)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released models: yes)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"kernel_size must be odd (3, 5, 7), got {value}")
        return value


class InLineAttention(nn.Module):
    """o_i = sum_j w_ij v_j + sum_r f_r v_(i+r), w_ij = s q_i . k_j - mean_m(s q_i . k_m) + 1 / N, per head.

    s = 1 / (N sqrt(D)); weights sum to one by a subtraction instead of a division, so that different queries
    have different weights; no feature map. Computed as mean(v) + s q_i sum_j k_j^T (v_j - mean(v)), which is
    the same. The k x k filters f are one for each image and channel, from the mean token by two layers
    inside each head, W_2 GELU(W_1 mean(x)). [B, N, C] -> [B, N, C]; the mean of v in at least fp32.
    Source: arXiv:2412.06590; the formula is read from the released code (LeapLabTHU/InLine,
    models/inline_deit.py), without its class token, of the paper the abstract.
    """

    def __init__(self, site: attnbench.AttentionSite, options: InLineOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        taps, heads = options.kernel_size**2, site.num_heads
        self.squeeze = nn.Conv1d(site.dim, site.dim, 1, groups=heads)
        self.filters = nn.Conv1d(site.dim, site.dim * taps, 1, groups=heads)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        mean = v.mean(1, keepdim=True, dtype=torch.promote_types(v.dtype, torch.float32))  # [B, 1, C]
        centred = (v - mean).to(v.dtype)
        scale = (x.shape[1] * (x.shape[2] // self.num_heads) ** 0.5) ** -1
        q, k, centred = (split_heads(z, self.num_heads) for z in (q * scale, k, centred))  # [B, H, N, D]
        o = merge_heads(contraction(q, k, centred, self.options.association)) + mean.to(v.dtype)
        side = self.options.kernel_size
        filters = self.filters(F.gelu(self.squeeze(x.mean(1).unsqueeze(-1))))  # [B, C k^2, 1]
        local = predicted_convolution(v, filters.view(x.shape[0], x.shape[2], side, side), context.grid)
        return self.out(o + local)


def macs(site: attnbench.AttentionSite, options: InLineOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, (k^2 + 1) C D for filters, k^2 N C for using them, 2 N C min(N, D)."""
    n, c, taps = site.num_tokens, site.dim, options.kernel_size**2
    # filters that are no parameter of a convolution are invisible to a counter of modules
    linear = 4 * n * c * c + (taps + 1) * c * site.head_dim
    return attnbench.MacCount(linear=linear, unhooked=taps * n * c) + contraction_macs(
        site, options.association
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `inline`."""
    yield attnbench.AttentionBackend(
        name="inline",
        summary="InLine: injective linear attention by subtraction, predicted local filters",
        source="InLine arXiv:2412.06590; released code",
        options=InLineOptions,
        symmetry="translation",
        family="linear",
        build=InLineAttention,
        macs=macs,
        complexity="linear",
    )
