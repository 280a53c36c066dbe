"""Mamba-2's mixer (state-space duality), both ways along the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

import attnbench
from attnbench.layers.gated_linear import Form
from attnbench.layers.scan_orders import ScanName, TokenOrder
from attnbench.layers.state_space_duality import state_space_duality, state_space_duality_macs
from attnbench.layers.state_space_init import CausalConv, step_bias

NORM_EPS = 1e-5


class Mamba2Options(attnbench.BackendOptions):
    """Options of `mamba2`."""

    form: Form = "chunked"
    """`chunked`: parallel over chunks of tokens; `recurrent`: the token loop. Equal up to rounding."""
    chunk_size: PositiveInt = 64
    """Tokens of a chunk in the chunked form, a power of two."""
    scan: ScanName = "raster"
    """`raster`: rows; `transposed`: columns in odd layers; `zigma`: eight zigzags by layer."""
    directions: Literal["both", "forward"] = "both"
    """`both`: forward and backward, added; `forward`: one way, as in a language model and in ZigMa."""
    expand: PositiveInt = 2
    """Inner width over dim."""
    state_dim: PositiveInt = 64
    """Rows of the state, S."""
    conv_size: int = Field(default=4, ge=1)
    """Tokens the causal convolution before the scan sees."""

    @field_validator("chunk_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"chunk_size must be a power of two (16, 32, 64, ...), got {value}")
        return value

    @model_validator(mode="after")
    def _chunks_of_a_chunked_form(self) -> Mamba2Options:
        if self.form == "recurrent" and self.chunk_size != type(self).model_fields["chunk_size"].default:
            raise ValueError(
                f"chunk_size: {self.chunk_size} does nothing with form: recurrent; leave it out, or set "
                "form: chunked"
            )
        return self

    @property
    def passes(self) -> int:
        """Scans of a layer."""
        return 2 if self.directions == "both" else 1


class Mamba2Attention(nn.Module):
    """Mamba-2's mixer in the attention's place, [B, N, C] -> [B, N, C].

    From one projection without bias come the gate z and values x (E = expand C channels each) and, for each
    direction, b, c (S) and a step d per head; x, b, c pass a causal depthwise convolution and SiLU. Per head
    S_t = exp(d_t A) S_{t-1} + b_t^T d_t x_t, y_t = c_t S_t + D x_t with d = softplus(. + bias) and A < 0 a
    number; output W_o RMSNorm(y * SiLU(z)). Steps, scan and norm in at least fp32. There are expand times
    the recipe's heads, so that a head is as wide as the recipe's (64 at the published sizes, as in Mamba-2).

    Both ways as Vim does it for Mamba: projections to z and x, the norm and W_o are shared, all that makes
    the scan (b, c, steps, convolution, A, D) is each direction's own; the two outputs are added. Mamba-2
    itself is causal, and its paper has no vision model.

    A Mamba model has no feed-forward network. Here the mixer, its expansion and its convolution stand in the
    attention's place and the skeleton keeps its feed-forward, so that the difference is that of the mixers;
    a recipe with a narrow `ffn` comes nearer to the original.
    Kept of the released initialisation: torch's own for projections and convolution, W_o divided by
    sqrt(depth), steps log-uniform in [0.001, 0.1], A uniform in [-16, -1], D = 1. `zigma` with
    `directions: forward` is ZigMa's way of scanning; DiS's long skips between shallow and deep blocks belong
    to the skeleton and are not here.
    Source: Mamba-2 arXiv:2405.21060; its released code (mamba2_simple.py, ssd_minimal.py), Vim's
    (arXiv:2401.09417, mamba_simple.py), ZigMa's (arXiv:2403.13802) and DiS's (arXiv:2402.05608) read.
    """

    keeps_own_init = True

    def __init__(self, site: attnbench.AttentionSite, options: Mamba2Options) -> None:
        super().__init__()
        self.options, self.head_dim = options, site.head_dim
        self.inner, self.heads = options.expand * site.dim, options.expand * site.num_heads
        passes, state = options.passes, options.state_dim
        self.order = TokenOrder(options.scan, site.grid, site.layer_idx)
        self.into = nn.Linear(site.dim, 2 * self.inner + passes * (2 * state + self.heads), bias=False)
        self.conv = CausalConv(passes * (self.inner + 2 * state), options.conv_size)
        self.step_bias = nn.Parameter(step_bias((passes, self.heads)))
        self.log_a = nn.Parameter(torch.empty(passes, self.heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(passes, self.heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, site.dim, bias=False)
        with torch.no_grad():
            self.out.weight /= site.depth**0.5

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        passes, state = self.options.passes, self.options.state_dim
        projected = self.into(self.order.to_scan(x))
        z, x, bc, steps = projected.split(
            (self.inner, self.inner, passes * 2 * state, passes * self.heads), -1
        )
        own = zip(bc.chunk(passes, -1), steps.chunk(passes, -1), strict=True)
        ways = [torch.cat((x, *way), -1) for way in own]  # [B, N, E + 2 S + H] each
        ways = [way.flip(1) if backward else way for backward, way in enumerate(ways)]
        convolved = self.conv(torch.cat([way[..., : -self.heads] for way in ways], -1))
        x, b, c = (
            torch.stack(convolved.chunk(passes, -1), 1).flatten(0, 1).split((self.inner, state, state), -1)
        )  # [B passes, N, ...]
        dtype = torch.promote_types(x.dtype, torch.float32)
        steps = torch.stack([way[..., -self.heads :] for way in ways], 1).to(dtype)  # [B, passes, N, H]
        steps = F.softplus(steps + self.step_bias.to(dtype)[:, None])
        decay = steps * -self.log_a.to(dtype).exp()[:, None]
        values = x.unflatten(-1, (self.heads, self.head_dim)).to(dtype)
        y = state_space_duality(
            values * steps.flatten(0, 1)[..., None],
            decay.flatten(0, 1),
            b,
            c,
            form=self.options.form,
            chunk_size=self.options.chunk_size,
        )
        y, values = (w.unflatten(0, (-1, passes)) for w in (y, values))  # [B, passes, N, H, P]
        y = torch.addcmul(y, values, self.skip.to(dtype)[:, None, :, None]).flatten(3)
        y = y[:, 0] + y[:, 1].flip(1) if passes == 2 else y[:, 0]
        return self.order.from_scan(self.out(self._gated_norm(y, z).to(projected.dtype)))

    def _gated_norm(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """RMSNorm(y SiLU(z)) weight: the gate comes first."""
        weight = self.norm_weight.to(y.dtype)
        return F.rms_norm(y * F.silu(z.to(y.dtype)), weight.shape, weight, NORM_EPS)


def macs(site: attnbench.AttentionSite, options: Mamba2Options) -> attnbench.MacCount:
    """Projections, the convolution, and the scan's matmuls; steps, decays, skip and gate are elementwise."""
    n, c, state, passes = site.num_tokens, site.dim, options.state_dim, options.passes
    inner, heads = options.expand * c, options.expand * site.num_heads
    scan = state_space_duality_macs(n, heads, site.head_dim, state, options.form, options.chunk_size)
    recurrence = state_space_duality_macs(n, heads, site.head_dim, state, "recurrent", 1)
    projections = c * (2 * inner + passes * (2 * state + heads)) + inner * c
    convolution = options.conv_size * passes * (inner + 2 * state)
    return attnbench.MacCount(
        linear=n * (projections + convolution),
        attention=passes * scan,
        attention_cheaper=passes * min(scan, recurrence),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `mamba2`."""
    yield attnbench.AttentionBackend(
        name="mamba2",
        summary="Mamba-2's mixer, both ways along rows, columns or ZigMa's zigzags",
        source="Mamba-2 arXiv:2405.21060; Vim arXiv:2401.09417; released code of both",
        options=Mamba2Options,
        build=Mamba2Attention,
        macs=macs,
        complexity="linear",
        family="sequential",
    )
