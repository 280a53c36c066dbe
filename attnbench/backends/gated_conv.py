"""MambaOut's gated convolution: a Mamba block without its state-space model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import DepthwiseConv

INIT_STD = 0.02  # of a normal distribution cut off at +-2, as in the released code


class GatedConvOptions(attnbench.BackendOptions):
    """Options of `gated-conv`."""

    kernel_size: Literal[3, 5, 7, 9] = 7
    """Side of the depthwise convolution (released code: 7)."""
    expansion: float = Field(default=8 / 3, gt=0, le=64)
    """Hidden width over dim, rounded down."""
    conv_ratio: float = Field(default=1.0, gt=0, le=64)
    """Convolved channels over dim; the other hidden channels pass as they are."""


def widths(site: attnbench.AttentionSite, options: GatedConvOptions) -> tuple[int, int]:
    """Return the hidden width and how many of its channels are convolved, rounded as released."""
    return int(options.expansion * site.dim), int(options.conv_ratio * site.dim)


class GatedConvAttention(nn.Module):
    """W_2 (GELU(g) * [i, conv(c)]) with [g, i, c] = W_1 x, conv depthwise on the grid.

    [B, N, C] -> [B, N, C]. The token mixer of MambaOut's Gated CNN block, without the block's LayerNorm and
    residual, which are the skeleton's. MambaOut has no feed-forward network beside it; here the skeleton
    keeps its own, so that the difference is that of the mixers. Kept of the released initialisation: all
    weights normal with 0.02, cut off at +-2, biases zero.
    Source: MambaOut arXiv:2405.07992; models/mambaout.py of its released code read.
    """

    keeps_own_init = True

    def __init__(self, site: attnbench.AttentionSite, options: GatedConvOptions) -> None:
        super().__init__()
        hidden, convolved = widths(site, options)
        self.parts = (hidden, hidden - convolved, convolved)
        self.into = nn.Linear(site.dim, 2 * hidden)
        self.conv = DepthwiseConv(convolved, options.kernel_size)
        self.out = nn.Linear(hidden, site.dim)
        for module in (self.into, self.conv.conv, self.out):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        gate, kept, convolved = self.into(x).split(self.parts, -1)
        mixed = torch.cat((kept, self.conv(convolved, context.grid)), -1)
        return self.out(F.gelu(gate) * mixed)


def supports(
    site: attnbench.AttentionSite, options: GatedConvOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse no hidden channel, and convolutions over no channel or over more than there are."""
    hidden, convolved = widths(site, options)
    if hidden < 1:
        return (
            f"expansion {options.expansion:g} of dim {site.dim} leaves no hidden channel; choose at least 1 "
            "(dim x expansion rounds down)"
        )
    if not 1 <= convolved <= hidden:
        return (
            f"conv_ratio {options.conv_ratio:g} x dim {site.dim} = {convolved} convolved channels, of "
            f"{hidden} hidden ones (expansion {options.expansion:g}) at least 1 and at most all can be; "
            f"choose a conv_ratio for which int(conv_ratio x {site.dim}) is 1 to {hidden}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: GatedConvOptions) -> attnbench.MacCount:
    """3 N C hidden for the two projections, k^2 N for each convolved channel."""
    hidden, convolved = widths(site, options)
    projections = 3 * site.dim * hidden
    return attnbench.MacCount(linear=site.num_tokens * (projections + options.kernel_size**2 * convolved))


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `gated-conv`."""
    yield attnbench.AttentionBackend(
        name="gated-conv",
        summary="MambaOut's gated depthwise convolution: a Mamba block without the SSM",
        source="MambaOut arXiv:2405.07992; released code",
        options=GatedConvOptions,
        build=GatedConvAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        symmetry="translation",
        family="sequential",
    )
