"""Kimi Delta Attention: the gated delta rule with a forget gate per channel, scanned in both directions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import nn

import attnbench
from attnbench.layers import (
    ChunkSize,
    DepthwiseConv,
    GatedNorm,
    LearnedDecay,
    QKVProjection,
    gated_delta_macs,
    gated_delta_rule,
    mean_of_scans,
    merge_heads,
    split_heads,
    unit_length,
    unit_steps,
)


class KdaOptions(attnbench.BackendOptions):
    """Options of `kda`."""

    scan: Literal["bidirectional", "forward"] = "bidirectional"
    """`bidirectional`: the mean of two scans, each with its own gates; `forward`: causal, row by row."""
    qkv_bias: bool = False
    """Bias of the query, key, value projection (released code: none)."""
    kernel_size: Literal[3, 5, 7] = 3
    """Side of the depthwise convolution on queries, keys and values, on the grid of tokens."""
    form: Literal["chunked", "recurrent"] = "chunked"
    """`chunked`: parallel over chunks of tokens; `recurrent`: the token loop. Equal up to rounding."""
    chunk_size: ChunkSize = 32
    """Tokens of a chunk in the chunked form, a power of two."""

    @model_validator(mode="after")
    def _chunks_of_a_chunked_form(self) -> KdaOptions:
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


class KimiDeltaAttention(nn.Module):
    """The delta rule with one forget factor per key channel along the tokens, [B, N, C] -> [B, N, C].

    Per head S_t = (I - b_t k_t^T k_t) diag(a_t) S_{t-1} + b_t k_t^T v_t, o_t = D^-1/2 q_t S_t (eq. 1).
    q, k, v = SiLU(conv(W x)), q and k of unit length; b = sigmoid(W_b x), a = exp(-exp(A) softplus(W_2 W_1 x
    + bias)), A one number a head; output W_o (sigmoid(W_4 W_3 x) * RMSNorm(o)) (eq. 10). W_1 and W_3 are as
    narrow as a head. Recurrence, gates and norm in at least fp32.

    For images: the paper's layer is causal, and no paper on it for images was found. Both directions are
    scanned as ViG does it for the related gated linear attention: projections are shared (W_1, too), gates
    a and b are each direction's own, and the mean of both goes on to the norm. The causal convolution over
    four tokens becomes a depthwise one on the grid, which sees the rows above and below. Keys and values are
    as wide as the model, as in the paper, so that the shared query, key, value projection fits; the output
    projection has a bias, like everybody's here. Kimi Linear's full attention in every fourth layer is a
    matter of the model, not of this layer. The layer as published, run both ways, is `fla-kda` of
    plugins/attnbench-fla.
    Source: Kimi Linear arXiv:2510.26692 (technical report read: sec. 3, sec. 4, listing 1);
    flash-linear-attention's KimiDeltaAttention, read. ViG arXiv:2405.18425, released code read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: KdaOptions) -> None:
        super().__init__()
        dim, heads, rank, scans = site.dim, site.num_heads, site.head_dim, options.scans
        self.num_heads, self.options = heads, options
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.conv = DepthwiseConv(3 * dim, options.kernel_size, bias=False)
        self.forget = nn.Sequential(
            nn.Linear(dim, rank, bias=False), nn.Linear(rank, scans * dim, bias=False)
        )
        self.step = nn.Linear(dim, scans * heads, bias=False)
        self.decay = LearnedDecay(scans, heads, site.head_dim, least=1.0)
        self.gate = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))
        self.norm = GatedNorm(site.head_dim, "sigmoid")
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        mixed = F.silu(self.conv(self.qkv.qkv(x), context.grid))  # one convolution for all three
        q, k, v, g = (split_heads(z, self.num_heads) for z in (*mixed.chunk(3, -1), self.gate(x)))
        log_decay, _ = self.decay(self.forget(x))  # [S, B, H, N, D]
        beta = unit_steps(self.step(x), self.options.scans)
        scan = functools.partial(gated_delta_rule, form=self.options.form, chunk_size=self.options.chunk_size)
        q = unit_length(q) * q.shape[-1] ** -0.5
        o = mean_of_scans(scan, (q, unit_length(k), v), (log_decay, beta))  # [B, H, N, D]
        return self.out(merge_heads(self.norm(o, g)))


def macs(site: attnbench.AttentionSite, options: KdaOptions) -> attnbench.MacCount:
    """Projections and convolution; the recurrence as executed, and in the cheaper of its two forms."""
    n, c, width, scans = site.num_tokens, site.dim, site.head_dim, options.scans
    executed, recurrent = (
        scans * site.num_heads * gated_delta_macs(n, width, width, form, options.chunk_size)
        for form in (options.form, "recurrent")
    )
    projections = 4 * c * c + width * (2 * c + (scans + 1) * c) + scans * c * site.num_heads
    return attnbench.MacCount(
        linear=n * (projections + options.kernel_size**2 * 3 * c),
        attention=executed,
        attention_cheaper=min(executed, recurrent),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `kda`."""
    yield attnbench.AttentionBackend(
        name="kda",
        summary="Kimi Delta Attention: delta rule that forgets by channel, both directions",
        source="Kimi Linear arXiv:2510.26692 sec. 3 and 4; released code; ViG arXiv:2405.18425",
        options=KdaOptions,
        build=KimiDeltaAttention,
        macs=macs,
        complexity="linear",
        family="sequential",
    )
