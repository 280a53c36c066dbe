"""Mamba's mixer (the selective scan S6), both ways along the tokens, as in Vim."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

import attnbench
from attnbench.layers.gated_linear import Form
from attnbench.layers.scan_orders import ScanName, TokenOrder
from attnbench.layers.selective_scan import ScanInputs, selective_scan, selective_scan_macs
from attnbench.layers.state_space_init import CausalConv, step_bias


class MambaOptions(attnbench.BackendOptions):
    """Options of `mamba`."""

    form: Form = "chunked"
    """`chunked`: over positions of all chunks at once; `recurrent`: the token loop. Equal up to rounding."""
    chunk_size: PositiveInt | None = None
    """Tokens of a chunk in the chunked form, a power of two; none: next to the root of all tokens."""
    scan: ScanName = "raster"
    """`raster`: rows; `transposed`: columns in odd layers; `zigma`: eight zigzags by layer."""
    directions: Literal["averaged", "summed", "forward"] = "averaged"
    """`averaged`: forward and backward, as Vim's models; `summed`: as DiS's; `forward`: as ZigMa's."""
    expand: PositiveInt = 2
    """Inner width over dim."""
    state_dim: PositiveInt = 16
    """States of a channel, S."""
    step_rank: PositiveInt | None = None
    """Rank of the projection to the steps; none: dim / 16, rounded up."""
    conv_size: int = Field(default=4, ge=1)
    """Tokens the causal convolution before the scan sees."""

    @field_validator("chunk_size")
    @classmethod
    def _power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            raise ValueError(f"chunk_size must be a power of two (8, 16, 32, ...), got {value}")
        return value

    @model_validator(mode="after")
    def _chunks_of_a_chunked_form(self) -> MambaOptions:
        if self.form == "recurrent" and self.chunk_size is not None:
            raise ValueError(
                f"chunk_size: {self.chunk_size} does nothing with form: recurrent; leave it out, or set "
                "form: chunked"
            )
        return self

    @property
    def passes(self) -> int:
        """Scans of a layer."""
        return 1 if self.directions == "forward" else 2

    def rank(self, dim: int) -> int:
        """Rank of the projection to the steps."""
        return self.step_rank or math.ceil(dim / 16)


class Direction(nn.Module):
    """What a direction's scan is made of: convolution, projections to steps, b and c, decay and skip."""

    def __init__(self, inner: int, rank: int, options: MambaOptions) -> None:
        super().__init__()
        self.parts = (rank, options.state_dim, options.state_dim)
        self.conv = CausalConv(inner, options.conv_size)
        self.select = nn.Linear(inner, sum(self.parts), bias=False)
        self.step = nn.Linear(rank, inner)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.step.bias.copy_(step_bias((inner,)))
        states = torch.arange(1.0, options.state_dim + 1)
        self.log_a = nn.Parameter(states.log()[:, None].repeat(1, inner))  # [S, E]
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x: torch.Tensor) -> ScanInputs:
        """Make the scan of x [B, N, E], without its dimension of sequences."""
        x = self.conv(x)
        low, b, c = self.select(x).split(self.parts, -1)
        steps = F.linear(low, self.step.weight)
        dtype = torch.promote_types(steps.dtype, torch.float32)
        # added here, not in the layer: biases lie around -5, next to which half types round steps away
        steps = F.softplus(steps.to(dtype) + self.step.bias.to(dtype))
        return ScanInputs(x, steps, -self.log_a.to(dtype).exp(), b, c)


class MambaAttention(nn.Module):
    """Mamba's mixer in the attention's place, [B, N, C] -> [B, N, C].

    Without a bias x is projected to z and u (E = expand C channels each). For each direction u passes a
    causal depthwise convolution and SiLU; from it come the steps d = softplus(W_2 W_1 u + bias) for every
    channel and b, c (S) for all; h_t = exp(d_t A) h_{t-1} + d_t b_t^T u_t, y_t = c_t h_t + D u_t with A < 0
    of [S, E]. Output W_o (y SiLU(z)). Steps and scan in at least fp32.

    Both ways as in Vim (its `v2`): projections to z and u and W_o are shared, everything of `Direction` is
    each one's own; the outputs are averaged as in Vim's released models, or summed as in DiS.

    A Mamba model has no feed-forward network. Here the mixer, its expansion and its convolution stand in the
    attention's place and the skeleton keeps its feed-forward, so that the difference is that of the mixers;
    a recipe with a narrow `ffn` comes nearer to the original.
    Kept of the released initialisation: torch's own for projections and convolution, W_o divided by
    sqrt(depth), W_2 uniform in +-rank^-1/2, steps log-uniform in [0.001, 0.1], A = -1 ... -S, D = 1.
    ZigMa is `scan: zigma` with `directions: forward`, but for its shell; DiS is `directions: summed` without
    its long skips between shallow and deep blocks, which belong to the skeleton, and its tokens for time and
    class, which are the skeleton's AdaLN.
    Source: Mamba arXiv:2312.00752; Vim arXiv:2401.09417; ZigMa arXiv:2403.13802; DiS arXiv:2402.05608;
    mamba_simple.py of Mamba, Vim and ZigMa, models_dis.py and utils_zigzag.py read; selective_scan_ref
    (selective_scan_interface.py of state-spaces/mamba) read, the CUDA kernel not.
    """

    keeps_own_init = True

    def __init__(self, site: attnbench.AttentionSite, options: MambaOptions) -> None:
        super().__init__()
        self.options, self.inner = options, options.expand * site.dim
        rank = options.rank(site.dim)
        self.order = TokenOrder(options.scan, site.grid, site.layer_idx)
        self.into = nn.Linear(site.dim, 2 * self.inner, bias=False)
        self.ways = nn.ModuleList(Direction(self.inner, rank, options) for _ in range(options.passes))
        self.out = nn.Linear(self.inner, site.dim, bias=False)
        with torch.no_grad():
            self.out.weight /= site.depth**0.5

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        u, z = self.into(self.order.to_scan(x)).chunk(2, -1)
        ways = cast("list[Direction]", list(self.ways))
        made = [way(u.flip(1) if backward else u) for backward, way in enumerate(ways)]
        x_, steps, _, b, c = (torch.stack(parts, 1) for parts in zip(*made, strict=True))
        a = torch.stack([inputs.a for inputs in made])  # [G, S, E]
        inputs = ScanInputs(x_.to(steps.dtype), steps, a, b, c)
        y = selective_scan(inputs, form=self.options.form, chunk_size=self.options.chunk_size)
        skip = torch.stack([way.skip for way in ways]).to(y.dtype)  # [G, E]
        y = torch.addcmul(y, inputs.x, skip[:, None])
        if self.options.directions == "forward":
            y = y[:, 0]
        else:
            y = y[:, 0] + y[:, 1].flip(1)
            if self.options.directions == "averaged":
                y = y / 2
        gated = (y * F.silu(z.to(y.dtype))).to(z.dtype)
        return self.order.from_scan(self.out(gated))


def macs(site: attnbench.AttentionSite, options: MambaOptions) -> attnbench.MacCount:
    """Projections, convolutions, and of the scan c h alone, its only matmul; the rest is elementwise."""
    n, c, state = site.num_tokens, site.dim, options.state_dim
    inner, rank = options.expand * c, options.rank(c)
    own = options.conv_size * inner + inner * (rank + 2 * state) + rank * inner
    scan = selective_scan_macs(n, inner, state, options.form, options.chunk_size)
    return attnbench.MacCount(
        linear=n * (3 * c * inner + options.passes * own),
        attention=options.passes * scan,
        attention_cheaper=options.passes * n * state * inner,
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `mamba`."""
    yield attnbench.AttentionBackend(
        name="mamba",
        summary="Mamba's selective scan, both ways along rows, columns or ZigMa's zigzags",
        source="Mamba arXiv:2312.00752; Vim arXiv:2401.09417; released code of both",
        options=MambaOptions,
        build=MambaAttention,
        macs=macs,
        complexity="linear",
        family="sequential",
    )
