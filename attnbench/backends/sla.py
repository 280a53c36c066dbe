"""Sparse-linear attention: exact for critical tiles of keys, linear for marginal ones, none for the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

import attnbench
from attnbench.layers import (
    QKVProjection,
    Tiling,
    ZeroLinear,
    affinities,
    elu_plus_one,
    merge_heads,
    ranked_tiles,
    split_heads,
    tile_grid,
    without_autocast,
)

EPS = 1e-5  # of the released code's denominator


class SlaOptions(attnbench.BackendOptions):
    """Options of `sla`. On 16 x 16 tokens the defaults make 2 tiles of 16 critical and 1 negligible."""

    tile_size: int = Field(default=4, ge=1)
    """Side of a tile in tokens. The paper's blocks are runs of 64 tokens; a tile of 4 x 4 has 16."""
    critical: float = Field(default=0.125, gt=0.0, le=1.0)
    """Share of tiles, rounded up (released code: down), that a tile's queries attend to exactly (paper: an
    eighth on images, a twentieth on videos)."""
    negligible: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of tiles, rounded down, that they skip (paper: a tenth; released code: none)."""
    linear: Literal["marginal", "all"] = "marginal"
    """What linear attention runs over: the tiles between (paper), or all tokens (released code since
    December 2025; `negligible` then skips nothing)."""
    feature_map: Literal["softmax", "elu"] = "softmax"
    """phi of linear attention: softmax over a head's channels (paper: the best), or ELU + 1."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection."""

    @model_validator(mode="after")
    def _nothing_is_skipped_of_all(self) -> SlaOptions:
        if self.linear == "all" and self.negligible not in (0, type(self).model_fields["negligible"].default):
            raise ValueError(
                f"negligible: {self.negligible} does nothing with linear: all; leave it out, or set "
                "linear: marginal"
            )
        return self


class SlaAttention(nn.Module):
    """O = O^s + Proj(O^l): softmax over critical tiles plus projected linear attention over marginal ones.

    Tiles are ranked for every tile of queries by P_c = softmax(pool(Q) pool(K)^T / sqrt(D)), pool the
    mean: the first are critical, the last negligible, the others marginal. O^s: softmax attention on the
    critical tiles' tokens alone. O^l = phi(Q) H / (phi(Q) Z + eps), H and Z the sums of phi(K_j)^T V_j and
    phi(K_j)^T 1 over the marginal tiles j, which are added, never subtracted from a total, so that
    nothing cancels. Proj is one D x D layer for all heads that starts as zero (released code). The ranking
    is a step function: no gradient passes through P_c, as in the paper's backward pass; q, k, v and
    Proj get theirs from O^s and O^l. Blocks are tiles of the image where the paper's are runs of tokens.
    [B, N, C] -> [B, N, C]; ranking, phi, H and Z in at least fp32, ties to the first tile; the softmax in
    the input's dtype. Left out: phi of Hedgehog (not in the released code) and ReLU (denominators of zero).
    Source: SLA arXiv:2509.24006, sec. 4-6 and app. A.2-A.3, and the released code, both branches. Read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: SlaOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.tiling = Tiling(site.grid, options.tile_size)
        self.critical, self.negligible = shares(self.tiling.num_tiles, options)
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.project = ZeroLinear(site.head_dim, site.head_dim)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        q_tiles, k_tiles, v_tiles = (self.tiling.cut(z) for z in (q, k, v))  # [B, H, T, S, D]
        order = self._rank(q_tiles, k_tiles)  # [B, H, T, T]
        critical = order[..., : self.critical].sort(-1).values
        context.record("critical_tiles", critical)
        sparse = self.tiling.join(self.tiling.attend(q_tiles, k_tiles, v_tiles, critical))  # [B, H, N, D]
        with without_autocast(x):
            if self.options.linear == "all":
                linear = self._linear(q, k, v)
            else:
                linear = self._marginal(q_tiles, k_tiles, v_tiles, order)
        return self.out(merge_heads(sparse + self.project(linear.to(sparse.dtype))))

    def _rank(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return ranked_tiles(affinities(self.tiling.mean(q.detach()), self.tiling.mean(k.detach())))

    def _linear(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Linear attention over all tokens: [B, H, N, D]."""
        return _divided(self._phi(q) @ (self._phi(k).transpose(-2, -1) @ _with_ones(v)))

    def _marginal(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor
    ) -> torch.Tensor:
        """Linear attention over the tiles between first and last: q, k, v in tiles -> [B, H, N, D]."""
        phi_k = self._phi(k)
        if self.tiling.valid is not None:  # phi of a place outside is not zero
            phi_k = phi_k * self.tiling.valid.unsqueeze(-1)
        states = phi_k.transpose(-2, -1) @ _with_ones(v)  # [B, H, T, D, D + 1]: a tile's H and Z
        between = order[..., self.critical : order.shape[-1] - self.negligible]
        marginal = torch.zeros_like(order, dtype=states.dtype).scatter(-1, between, 1.0)  # [B, H, T, T]
        sums = (marginal @ states.flatten(3)).unflatten(3, states.shape[3:])
        return self.tiling.join(_divided(self._phi(q) @ sums))

    def _phi(self, z: torch.Tensor) -> torch.Tensor:
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return z.softmax(-1) if self.options.feature_map == "softmax" else elu_plus_one(z)


def _with_ones(v: torch.Tensor) -> torch.Tensor:
    """Values in at least fp32 with one channel of ones, whose sums are Z: [..., D] -> [..., D + 1]."""
    return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1).to(torch.promote_types(v.dtype, torch.float32))


def _divided(sums: torch.Tensor) -> torch.Tensor:
    """Divide numerators by the denominator beside them: [..., D + 1] -> [..., D]."""
    return sums[..., :-1] / (sums[..., -1:] + EPS)


def shares(tiles: int, options: SlaOptions) -> tuple[int, int]:
    """Return how many tiles are critical, and how many negligible: none where linear attention sees all.

    >>> shares(16, SlaOptions())
    (2, 1)
    """
    # a tenth of 30 is 3.0000000000000004 in floating point, which rounds up to 4
    critical = math.ceil(round(options.critical * tiles, 9))
    if options.linear == "all":
        return critical, 0
    return critical, math.floor(round(options.negligible * tiles, 9))


def supports(
    site: attnbench.AttentionSite, options: SlaOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse shares that leave linear attention no tile, or want more tiles than there are."""
    rows, columns = tile_grid(site.grid, options.tile_size)
    tiles = rows * columns
    critical, negligible = shares(tiles, options)
    told = f"{critical} critical and {negligible} negligible of {tiles} tiles on grid {site.grid}"
    if critical + negligible > tiles:
        return f"{told} are more than there are; choose shares that sum to 1 at most"
    if critical + negligible == tiles and options.linear == "marginal":
        return (
            f"{told} leave linear attention none; choose smaller shares or a smaller tile_size, or "
            "linear: all"
        )
    return None


def macs(site: attnbench.AttentionSite, options: SlaOptions) -> attnbench.MacCount:
    """4 N C^2 + N D C for the projections, T^2 C for the ranking, 2 T S K S C for the K critical tiles.

    Linear attention: 2 T S (D + 1) C for the tiles' states and their use, T^2 (D + 1) C for their sums; over
    all tokens 2 N (D + 1) C. K grows with T, so the whole is quadratic in N.
    """
    n, c, d, places = site.num_tokens, site.dim, site.head_dim, options.tile_size**2
    rows, columns = tile_grid(site.grid, options.tile_size)
    tiles = rows * columns
    critical, _ = shares(tiles, options)
    attention = tiles**2 * c + 2 * tiles * places * critical * places * c
    if options.linear == "all":
        attention += 2 * n * (d + 1) * c
    else:
        attention += (2 * tiles * places + tiles**2) * (d + 1) * c
    return attnbench.MacCount(linear=4 * n * c * c + n * d * c, attention=attention)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `sla`."""
    yield attnbench.AttentionBackend(
        name="sla",
        summary="SLA: softmax on critical tiles, linear attention on marginal ones",
        source="SLA arXiv:2509.24006, sec. 4-6 and app. A (read), and its released code (read)",
        options=SlaOptions,
        build=SlaAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
        family="sparse",
    )
