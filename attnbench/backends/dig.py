"""DiG's gated linear attention with alternating scan directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

import attnbench
from attnbench.layers import gated_linear_attention, gated_linear_macs, merge_heads, split_heads
from attnbench.layers.gated_linear import Form

INIT_GAIN = 2**-2.5  # of the Xavier-uniform projections (released code)


class DigOptions(attnbench.BackendOptions):
    """Options of `dig`."""

    form: Form = "chunked"
    """`chunked`: parallel over chunks of tokens; `recurrent`: the token loop. Equal up to rounding."""
    chunk_size: PositiveInt = 32
    """Tokens of a chunk in the chunked form, a power of two."""
    scan: Literal["alternating", "row-major"] = "alternating"
    """`alternating`: four directions by layer, as released; `row-major`: every layer forward."""
    expand_k: float = Field(default=0.5, gt=0, le=64)
    """Width of queries, keys and forget gates over dim."""
    gate_rank: PositiveInt = 16
    """Rank of the forget gate's projection."""
    gate_normaliser: float = Field(default=16.0, gt=0)
    """Divides the log of the forget gate: the larger, the longer the memory."""

    @field_validator("chunk_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"chunk_size must be a power of two (16, 32, 64, ...), got {value}")
        return value

    @model_validator(mode="after")
    def _chunks_of_a_chunked_form(self) -> DigOptions:
        if self.form == "recurrent" and self.chunk_size != type(self).model_fields["chunk_size"].default:
            raise ValueError(
                f"chunk_size: {self.chunk_size} does nothing with form: recurrent; leave it out, or set "
                "form: chunked"
            )
        return self


def key_dim(site: attnbench.AttentionSite, options: DigOptions) -> int:
    """Width of queries and keys over all heads."""
    return round(site.dim * options.expand_k)


def scan_order(layer_idx: int) -> tuple[bool, bool]:
    """Return whether layer `layer_idx` of the released model sees the tokens (column-major, reversed).

    The released stream is reversed after every layer and transposed after layers 1, 3, 5, ...; the
    two commute, so that layer i has seen i reversals and i // 2 transpositions: a period of four.

    >>> [scan_order(layer_idx) for layer_idx in range(4)]
    [(False, False), (False, True), (True, False), (True, True)]
    """
    return layer_idx // 2 % 2 == 1, layer_idx % 2 == 1


class GatedRMSNorm(nn.Module):
    """RMSNorm(o) weight * g sigmoid(g) on [..., D] in at least fp32. Source: fla's FusedRMSNormSwishGate."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, o: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(o.dtype, torch.float32)
        normed = F.rms_norm(o.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps)
        return (normed * F.silu(g.to(dtype))).to(o.dtype)


class DigAttention(nn.Module):
    """Gated linear attention along one of four scan directions, [B, N, C] -> [B, N, C].

    Per head S_t = diag(exp a_t) S_{t-1} + k_t^T v_t, o_t = D_k^-1/2 q_t S_t with the forget gate
    a = logsigmoid(W_2 W_1 x + b) / 16; output W_o (RMSNorm(o) * swish(g)). No bias but b. The gate, the
    recurrence and the norm in at least fp32.

    Directions: the released model reorders the token stream between layers, here the tokens are
    permuted for the scan and put back. That is the same model: projections, norms, AdaLN, SwiGLU
    and residuals act on each token alone and do not see an order, and the 3x3 depthwise convolution
    of the stream, which does, sees in the released order an image mirrored or transposed: the same
    function with its taps mirrored or transposed. It is learned per layer and starts as the
    identity, which is its own mirror image, so both start and train alike. The released depths (12, 24,
    28) end in row-major order because they are multiples of four; here the order is restored
    after every layer, at any depth and on any grid (the released transposition needs a square one).

    No shared QKVProjection: queries and keys have half the width of values, and the released
    initialisation (Xavier-uniform with gain 2^-2.5, kept here) depends on each matrix's own widths.
    Source: DiG arXiv:2405.18428 and its released code (models_dig.py, module_dig.py); GLA
    arXiv:2312.06635, sec. 4, and flash-linear-attention's GatedLinearAttention. Code read.
    """

    keeps_own_init = True

    def __init__(self, site: attnbench.AttentionSite, options: DigOptions) -> None:
        super().__init__()
        dim, keys = site.dim, key_dim(site, options)
        self.num_heads, self.options = site.num_heads, options
        alternating = options.scan == "alternating"
        self.column_major, self.reverse = scan_order(site.layer_idx) if alternating else (False, False)
        self.q = nn.Linear(dim, keys, bias=False)
        self.k = nn.Linear(dim, keys, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.forget = nn.Sequential(
            nn.Linear(dim, options.gate_rank, bias=False), nn.Linear(options.gate_rank, keys)
        )
        self.norm = GatedRMSNorm(site.head_dim)
        self.out = nn.Linear(dim, dim, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=INIT_GAIN)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        x = self._to_scan(x, context.grid)
        q, k, v, g = (split_heads(p(x), self.num_heads) for p in (self.q, self.k, self.v, self.gate))
        o = gated_linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            split_heads(self._log_decay(x), self.num_heads),  # [B, H, N, Dk]
            form=self.options.form,
            chunk_size=self.options.chunk_size,
        )
        return self._from_scan(self.out(merge_heads(self.norm(o, g))), context.grid)

    def _log_decay(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.forget(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.logsigmoid(logits) / self.options.gate_normaliser

    def _to_scan(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if self.column_major:
            x = rearrange(x, "b (y x) c -> b (x y) c", y=grid[0])
        return x.flip(1) if self.reverse else x

    def _from_scan(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        x = x.flip(1) if self.reverse else x
        return rearrange(x, "b (x y) c -> b (y x) c", y=grid[0]) if self.column_major else x


def supports(
    site: attnbench.AttentionSite, options: DigOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse queries and keys that the heads do not divide."""
    keys = key_dim(site, options)
    if keys < 1 or keys % site.num_heads:
        return (
            f"num_heads={site.num_heads} must divide the key width {keys} = dim {site.dim} x expand_k "
            f"{options.expand_k}; choose expand_k as a multiple of num_heads / dim = "
            f"{site.num_heads / site.dim:g}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: DigOptions) -> attnbench.MacCount:
    """Projections; the recurrence as executed, and as the paper's table counts it.

    Its digits (DiG rows of Tables 1 and 2) follow when the state is counted as that of ONE head,
    2 N d_k d = N d^2 at d_k = d/2, although that is H times what executes; and when RMSNorm counts
    nothing: with the output gate it is one fused function in the released code, which a hook on norm
    modules misses.
    """
    n, c, keys = site.num_tokens, site.dim, key_dim(site, options)
    per_head = gated_linear_macs(n, keys // site.num_heads, site.head_dim, options.form, options.chunk_size)
    return attnbench.MacCount(
        linear=n * (2 * c * keys + 3 * c * c + options.gate_rank * (c + keys)),
        attention=site.num_heads * per_head,
        attention_cheaper=2 * n * keys * c,
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `dig`."""
    yield attnbench.AttentionBackend(
        name="dig",
        summary="gated linear attention scanned in four alternating directions, as in DiG",
        family="sequential",
        source="DiG arXiv:2405.18428; GLA arXiv:2312.06635 sec. 4; released code",
        options=DigOptions,
        build=DigAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
