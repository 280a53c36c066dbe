"""Feature fixation (linear video transformer): linear attention, q and k reweighted by q, k and v."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction_macs,
    linear_attention,
    merge_heads,
    neighbour_shift,
    split_heads,
)

NEIGHBOURS = 8


class FeatureFixationOptions(attnbench.BackendOptions):
    """Options of `feature-fixation`."""

    lent_share: int | None = Field(default=16, ge=NEIGHBOURS)
    """Neighbourhood association: of keys and values, one in so many channels comes from each of the eight
    tokens around (released code: 16, so half of all channels); null: none does."""
    share_gate: bool = True
    """One gate for queries and keys (released settings: yes, but for Kinetics-400); off: one for each."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (released models: yes)."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator (released code: 1e-6)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""


class FeatureFixationAttention(nn.Module):
    """Linear attention of r * phi(q) and r * phi(k), r = sigmoid(W [phi(q), phi(k), v] + b), per head.

    phi(z) = ReLU(z) + 1 / sqrt(D); W [D, 3D] is shared by the heads. Before that, keys and values take one
    in sixteen channels from each of their eight neighbours on the grid (`neighbour_shift`).
    [B, N, C] -> [B, N, C]; the sum over keys and the division in fp32 for half types.
    Source: arXiv:2210.08164; the formula is read from the released code (OpenNLPLab/Linear_VideoTransformer,
    linear_block_v2.py, temporal_shift.py), of the paper the abstract. A video has that shift in its
    attention over frames and one between frames in that over space; an image has one attention, with the
    shift in space.
    """

    def __init__(self, site: attnbench.AttentionSite, options: FeatureFixationOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.gate_q = nn.Linear(3 * site.head_dim, site.head_dim)
        self.gate_k = None if options.share_gate else nn.Linear(3 * site.head_dim, site.head_dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        if self.options.lent_share is not None:
            lent = x.shape[-1] // self.options.lent_share
            k, v = (neighbour_shift(z, context.grid, lent) for z in (k, v))
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))  # [B, H, N, D]
        floor = q.shape[-1] ** -0.5
        q, k = q.relu() + floor, k.relu() + floor
        together = torch.cat([q, k, v], dim=-1)
        ratio_q = self.gate_q(together).sigmoid()
        ratio_k = ratio_q if self.gate_k is None else self.gate_k(together).sigmoid()
        eps, order = self.options.eps, self.options.association
        o = linear_attention(q * ratio_q, k * ratio_k, v, eps=eps, association=order)
        return self.out(merge_heads(o))


def supports(
    site: attnbench.AttentionSite, options: FeatureFixationOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse widths of which a neighbour would lend nothing."""
    if options.lent_share is not None and site.dim < options.lent_share:
        allowed = f"{NEIGHBOURS} to {site.dim}, or null" if site.dim >= NEIGHBOURS else "null"
        return (
            f"lent_share={options.lent_share} leaves no whole channel of dim={site.dim} for a neighbour to "
            f"lend; set lent_share to {allowed}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: FeatureFixationOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 3 N C D for each gate, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    gates = 3 * n * c * site.head_dim * (1 if options.share_gate else 2)
    return attnbench.MacCount(linear=4 * n * c * c + gates) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `feature-fixation`."""
    yield attnbench.AttentionBackend(
        name="feature-fixation",
        summary="linear attention with features of q and k reweighted by q, k and v",
        source="Linear Video Transformer with Feature Fixation arXiv:2210.08164; released code",
        options=FeatureFixationOptions,
        family="linear",
        build=FeatureFixationAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
