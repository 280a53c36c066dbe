"""VSA: attention between averaged tiles chooses the few tiles that token-level attention then sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    QKVProjection,
    Tiling,
    ZeroLinear,
    affinities,
    largest_tiles,
    merge_heads,
    split_heads,
    tile_grid,
    why_not_that_many,
    without_autocast,
)


class VsaOptions(attnbench.BackendOptions):
    """Options of `vsa`. The defaults choose 2 of 16 tiles on 16 x 16 tokens, as the paper 32 of 256 cubes."""

    tile_size: int = Field(default=4, ge=1)
    """Side of a tile (paper: cubes of 4 x 4 x 4)."""
    top_k: int = Field(default=2, ge=1)
    """Tiles that the queries of a tile attend to in one head (paper: 32)."""
    gates: Literal["both", "coarse"] = "both"
    """`both`: a gate on either stage, as in the paper's training from scratch; `coarse`: none on the fine
    stage and one on the coarse that starts at zero, as in its adaptation of trained models and its code."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""


class VsaAttention(nn.Module):
    """O = G_c O_c + G_f O_f: attention between tiles' means, and of tokens with the top-k tiles of it.

    Coarse: A_c = softmax(Q_c K_c^T / sqrt(D)) of mean-pooled Q, K, V; O_c = A_c V_c, the same for all tokens
    of a tile. Fine: the queries of a tile attend to the tokens of the k tiles with the largest A_c in
    its row. Gates are linear in x, one number per token and channel. The choice is a step function; what
    predicts it is trained through O_c, and q, k and v get gradients from both stages, as in the paper.
    [B, N, C] -> [B, N, C]; the coarse stage in at least fp32, ties to the first tile; the fine stage's
    softmax in the input's dtype. On a grid of tokens, tiles take the place of the paper's cubes; where
    they stick out of the grid, means are over the tokens there are (as in the released code).
    Left out: the annealing of k, which is a schedule of training.
    Source: VSA arXiv:2505.13389, sec. 2.2-2.3 and 3.1, read; FastVideo's video_sparse_attn read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: VsaOptions) -> None:
        super().__init__()
        dim, both = site.dim, options.gates == "both"
        self.num_heads, self.options = site.num_heads, options
        self.tiling = Tiling(site.grid, options.tile_size)
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.coarse_gate = nn.Linear(dim, dim) if both else ZeroLinear(dim, dim)  # G_c
        self.fine_gate = nn.Linear(dim, dim) if both else None  # G_f
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (self.tiling.cut(split_heads(z, self.num_heads)) for z in self.qkv(x))  # [B, H, T, S, D]
        coarse, chosen = self._coarse(q, k, v)
        context.record("chosen_tiles", chosen)
        coarse = coarse.to(v.dtype).unsqueeze(3).expand_as(v)
        coarse, fine = (
            merge_heads(self.tiling.join(o)) for o in (coarse, self.tiling.attend(q, k, v, chosen))
        )
        if self.fine_gate is not None:
            fine = self.fine_gate(x) * fine
        return self.out(self.coarse_gate(x) * coarse + fine)

    def _coarse(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return O_c [B, H, T, D] and the chosen tiles [B, H, T, K]."""
        q, k, v = (self.tiling.mean(z) for z in (q, k, v))  # [B, H, T, D]
        scores = affinities(q, k)
        with without_autocast(v):
            return scores.softmax(-1) @ v, largest_tiles(scores, self.options.top_k)


def supports(
    site: attnbench.AttentionSite, options: VsaOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more tiles than the grid has."""
    return why_not_that_many(options.top_k, site.grid, options.tile_size, "top_k")


def macs(site: attnbench.AttentionSite, options: VsaOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, N C^2 a gate, 2 T^2 C for the coarse stage, 2 T S K S C for the fine.

    T tiles of S places, those outside the grid included; T^2 is quadratic in N, but S^2 times less.
    """
    n, c, places = site.num_tokens, site.dim, options.tile_size**2
    rows, columns = tile_grid(site.grid, options.tile_size)
    tiles = rows * columns
    gates = 2 if options.gates == "both" else 1
    attention = 2 * tiles**2 * c + 2 * tiles * places * options.top_k * places * c
    return attnbench.MacCount(linear=(4 + gates) * n * c * c, attention=attention)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `vsa`."""
    yield attnbench.AttentionBackend(
        name="vsa",
        summary="VSA: averaged tiles choose the top-k tiles that tokens attend to, gated",
        source="VSA arXiv:2505.13389, sec. 2-3 (read), and its released code in FastVideo (read)",
        options=VsaOptions,
        build=VsaAttention,
        macs=macs,
        supports=supports,
        complexity="subquadratic",
        family="sparse",
    )
