"""Gated DeltaNet: a state that forgets, and replaces what it held for a key, scanned in both directions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

import attnbench
from attnbench.layers import (
    ChunkSize,
    DepthwiseConv,
    GatedNorm,
    LearnedDecay,
    gated_delta_macs,
    gated_delta_rule,
    mean_of_scans,
    merge_heads,
    split_heads,
    unit_length,
    unit_steps,
)


class GatedDeltaNetOptions(attnbench.BackendOptions):
    """Options of `gated-deltanet`."""

    scan: Literal["bidirectional", "forward"] = "bidirectional"
    """`bidirectional`: the mean of two scans, each with its own gates; `forward`: causal, row by row."""
    expand_k: float = Field(default=0.75, gt=0, le=64)
    """Width of queries and keys over dim."""
    expand_v: float = Field(default=1.5, gt=0, le=64)
    """Width of values over dim."""
    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise convolution on queries, keys and values, on the grid of tokens."""
    form: Literal["chunked", "recurrent"] = "chunked"
    """`chunked`: parallel over chunks of tokens; `recurrent`: the token loop. Equal up to rounding."""
    chunk_size: ChunkSize = 32
    """Tokens of a chunk in the chunked form, a power of two."""

    @model_validator(mode="after")
    def _chunks_of_a_chunked_form(self) -> GatedDeltaNetOptions:
        if self.form == "recurrent" and self.chunk_size != type(self).model_fields["chunk_size"].default:
            raise ValueError(
                f"chunk_size: {self.chunk_size} does nothing with form: recurrent; leave it out, or set "
                "form: chunked"
            )
        return self

    @property
    def scans(self) -> int:
        """Directions in which the tokens are scanned."""
        return 2 if self.scan == "bidirectional" else 1


def widths(site: attnbench.AttentionSite, options: GatedDeltaNetOptions) -> tuple[int, int]:
    """Width of keys and of values over all heads."""
    return round(site.dim * options.expand_k), round(site.dim * options.expand_v)


class GatedDeltaNetAttention(nn.Module):
    """The gated delta rule along the tokens, [B, N, C] -> [B, N, C].

    Per head S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t, o_t = D_k^-1/2 q_t S_t: the state first
    forgets (a, one factor a head), then what it holds for the key k_t moves towards v_t by the step b_t.
    q, k, v = SiLU(conv(W x)), q and k of unit length; b = sigmoid(W_b x), a = exp(-exp(A) softplus(W_a x +
    bias)); output W_o (RMSNorm(o) * SiLU(W_g x)). Recurrence, gates and norm in at least fp32.

    For images: the paper's layer is causal, and no paper on it for images was found. Both directions
    are scanned as ViG does it for the related gated linear attention: projections are shared, gates a and
    b are each direction's own, and the mean of both goes on to the norm. The causal convolution over four
    tokens becomes a depthwise one on the grid, which sees the rows above and below. Widths are those of
    the authors' code (keys 0.75 C, values 1.5 C), so that there is no shared query, key, value projection
    to inherit. The layer as published, run both ways, is `fla-gated-deltanet` of plugins/attnbench-fla.
    Source: arXiv:2412.06464, abstract and gated delta rule (the whole paper was not read); released code
    (NVlabs/GatedDeltaNet, gated_delta_net.py) and flash-linear-attention's GatedDeltaNet, read: where they
    differ, in the bias of b and the place of the gates, the latter, which is the one kept up. ViG
    arXiv:2405.18425, released code read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: GatedDeltaNetOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        keys, values = widths(site, options)
        self.split = [keys, keys, values]
        self.project = nn.Linear(site.dim, sum(self.split), bias=False)
        self.conv = DepthwiseConv(sum(self.split), options.kernel_size, bias=False)
        self.forget = nn.Linear(site.dim, options.scans * site.num_heads, bias=False)
        self.step = nn.Linear(site.dim, options.scans * site.num_heads, bias=False)
        self.decay = LearnedDecay(options.scans, site.num_heads)
        self.gate = nn.Linear(site.dim, values, bias=False)
        self.norm = GatedNorm(values // site.num_heads, "silu")
        self.out = nn.Linear(values, site.dim, bias=False)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        mixed = F.silu(self.conv(self.project(x), context.grid))
        q, k, v, g = (split_heads(z, self.num_heads) for z in (*mixed.split(self.split, -1), self.gate(x)))
        log_decay, _ = self.decay(self.forget(x))
        beta = unit_steps(self.step(x), self.options.scans)
        scan = functools.partial(gated_delta_rule, form=self.options.form, chunk_size=self.options.chunk_size)
        q = unit_length(q) * q.shape[-1] ** -0.5
        o = mean_of_scans(scan, (q, unit_length(k), v), (log_decay, beta))  # [B, H, N, Dv]
        return self.out(merge_heads(self.norm(o, g)))


def supports(
    site: attnbench.AttentionSite, options: GatedDeltaNetOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse keys and values that the heads do not divide."""
    for name, width in zip(("expand_k", "expand_v"), widths(site, options), strict=True):
        if width < 1 or width % site.num_heads:
            return (
                f"num_heads={site.num_heads} must divide dim {site.dim} x {name} {getattr(options, name)} = "
                f"{width}; choose {name} as a multiple of num_heads / dim = {site.num_heads / site.dim:g}"
            )
    return None


def macs(site: attnbench.AttentionSite, options: GatedDeltaNetOptions) -> attnbench.MacCount:
    """Projections and convolution; the recurrence as executed, and in the cheaper of its two forms."""
    n, c, heads = site.num_tokens, site.dim, site.num_heads
    keys, values = widths(site, options)
    mixed, scans = 2 * keys + values, options.scans
    executed, recurrent = (
        scans * heads * gated_delta_macs(n, keys // heads, values // heads, form, options.chunk_size)
        for form in (options.form, "recurrent")
    )
    return attnbench.MacCount(
        linear=n * (c * (mixed + 2 * values + 2 * scans * heads) + options.kernel_size**2 * mixed),
        attention=executed,
        attention_cheaper=min(executed, recurrent),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `gated-deltanet`."""
    yield attnbench.AttentionBackend(
        name="gated-deltanet",
        summary="Gated DeltaNet: gated delta rule, scanned in both directions",
        source="arXiv:2412.06464; released code; ViG arXiv:2405.18425",
        options=GatedDeltaNetOptions,
        build=GatedDeltaNetAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
        family="sequential",
    )
