"""Multi-head linear attention (MHLA): a state for each block of tokens, mixed for each block of queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, PositiveInt
from torch import nn

import attnbench
from attnbench.layers import (
    DepthwiseConv,
    QKVProjection,
    block_sides,
    from_blocks,
    nearness,
    to_blocks,
    without_autocast,
)

FLOOR = 1e-6  # added after the ReLU, so that no row is dead (released code)


class MHLAOptions(attnbench.BackendOptions):
    """Options of `mhla`."""

    blocks: PositiveInt = 4
    """Blocks a side of the grid; M is its square (paper: 16 blocks for images of 256 and 512 pixels)."""
    lepe: bool = True
    """A depthwise 3x3 convolution of the values beside the attention (released code: yes; the paper leaves it
    out at its largest sizes)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released code: yes)."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator (released code: 1e-6)."""


class MHLAAttention(nn.Module):
    """o = q S_i / (q . z_i + eps) for q in block i; S_i = sum_b m_ib sum_(j in b) k_j^T v_j, z_i so of k_j.

    Per head, q and k after ReLU + 1e-6; m [M, M] is learned, the same for all heads, clipped to [0, 1], and
    begins as nearness of blocks. Blocks are of ceil(height / blocks) x ceil(width / blocks) tokens, those at
    the end cut short by the grid. LePE(v) is added. [B, N, C] -> [B, N, C]; z, the division in at least fp32.
    Source: MHLA arXiv:2601.07832, sec. 3-5 read; released code (DAGroup-PKU/MHLA, mhla_dit) read. Different
    from that code: coefficients are clipped (sec. 4.2; there not at all), where they are used and not at
    every update, so that one below 0 has no gradient; they start by rows, each against its own farthest
    block, where the code normalises columns against the farthest pair; z_i is eq. 4's, where the code mixes
    q_b . z_b of the blocks' own queries; x is not normalised once more behind the transformer block's
    LayerNorm.
    """

    def __init__(self, site: attnbench.AttentionSite, options: MHLAOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.mixing = nn.Parameter(nearness(options.blocks))
        self.lepe = DepthwiseConv(site.dim, 3) if options.lepe else None

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        parts = (q.relu() + FLOOR, k.relu() + FLOOR, v)
        grid, blocks = context.grid, self.options.blocks
        q_b, k_b, v_b = (to_blocks(z, grid, blocks, self.num_heads) for z in parts)  # [B, H, M, n, D]
        mixing = self.mixing.clamp(0, 1)
        state = k_b.transpose(-2, -1) @ v_b  # [B, H, M, D, D]
        mixed = (mixing.to(state.dtype) @ state.flatten(-2)).view(state.shape)
        mass = k_b.sum(-2, dtype=torch.promote_types(k_b.dtype, torch.float32))  # [B, H, M, D]
        with without_autocast(x):
            mass = mixing.to(mass.dtype) @ mass
        denominator = (q_b * mass.unsqueeze(-2)).sum(-1, keepdim=True) + self.options.eps
        o = from_blocks((q_b @ mixed / denominator).to(v.dtype), grid, blocks)
        return self.out(o if self.lepe is None else o + self.lepe(v, grid))


def supports(
    site: attnbench.AttentionSite, options: MHLAOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more blocks a side than a side has tokens, and those that leave some without a token."""
    if options.blocks > min(site.grid):
        return (
            f"blocks={options.blocks} a side exceed the shorter side of grid {site.grid}; "
            f"choose at most {min(site.grid)}"
        )
    if not _all_hold_tokens(site.grid, options.blocks):
        fitting = [blocks for blocks in range(1, min(site.grid) + 1) if _all_hold_tokens(site.grid, blocks)]
        return (
            f"blocks={options.blocks} leave blocks of grid {site.grid} without a token; "
            f"choose one of {fitting}"
        )
    return None


def _all_hold_tokens(grid: tuple[int, int], blocks: int) -> bool:
    """Whether blocks of sides rounded up reach the end of the grid with the last one, not before."""
    sides = block_sides(grid, blocks)
    return all((blocks - 1) * side < tokens for side, tokens in zip(sides, grid, strict=True))


def macs(site: attnbench.AttentionSite, options: MHLAOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 9 N C for LePE, 2 N' C D for the states, M^2 C (D + 1) for mixing them.

    N' are the tokens of all blocks were they whole.
    """
    n, c, d, blocks = site.num_tokens, site.dim, site.head_dim, options.blocks**2
    height, width = block_sides(site.grid, options.blocks)
    linear = 4 * n * c * c + (9 * n * c if options.lepe else 0)
    attention = 2 * blocks * height * width * c * d + blocks * blocks * c * (d + 1)
    return attnbench.MacCount(linear=linear, attention=attention)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `mhla`."""
    yield attnbench.AttentionBackend(
        name="mhla",
        summary="MHLA: linear attention with a learned mixture of block states",
        source="MHLA arXiv:2601.07832, sec. 4; released code",
        options=MHLAOptions,
        family="linear",
        build=MHLAAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
