"""What the gated recurrences of Mamba-2's family share: decays, gated norm, unit keys, two directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import AfterValidator, PositiveInt
from torch import nn


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"chunk_size must be a power of two (16, 32, 64, ...), got {value}")
    return value


ChunkSize = Annotated[PositiveInt, AfterValidator(_power_of_two)]
"""Type of an option: tokens of a chunk."""


class LearnedDecay(nn.Module):
    """Log decay -exp(A) dt and step dt = softplus(z + bias), in at least fp32, as in Mamba-2.

    Logits z [B, N, S H W] give both as [S, B, H, N, W]: S scans, W factors a head. A starts uniform in
    (least, 16], dt log-uniform in [0.001, 0.1], both drawn for every scan.
    Source: Mamba-2 arXiv:2405.21060; flash-linear-attention's GatedDeltaNet and KimiDeltaAttention, read.
    """

    def __init__(self, scans: int, num_heads: int, width: int = 1, least: float = 0.0) -> None:
        super().__init__()
        start = least + (16 - least) * (1 - torch.rand(scans, num_heads))  # never 0, whose log is no number
        step = torch.exp(math.log(1e-3) + math.log(100) * torch.rand(scans, num_heads * width))
        self.log_rate = nn.Parameter(start.log())
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is `step`

    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scans, heads = self.log_rate.shape
        shifted = logits.to(dtype) + self.bias.to(dtype).flatten()
        step = rearrange(softplus(shifted), "b n (s h w) -> s b h n w", s=scans, h=heads)
        return -self.log_rate.to(dtype).exp()[:, None, :, None, None] * step, step


class GatedNorm(nn.Module):
    """RMSNorm(o) * activation(g) on [..., D], with gate_first RMSNorm(o * activation(g)); in at least fp32.

    Source: flash-linear-attention's FusedRMSNormGated; gate_first is Mamba-2's, RMSNormGated there.
    """

    def __init__(
        self, dim: int, activation: Literal["silu", "sigmoid"], eps: float = 1e-5, *, gate_first: bool = False
    ) -> None:
        super().__init__()
        self.eps, self.activation = eps, {"silu": F.silu, "sigmoid": F.sigmoid}[activation]
        self.gate_first = gate_first
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, o: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(o.dtype, torch.float32)
        gate, weight = self.activation(g.to(dtype)), self.weight.to(dtype)
        if self.gate_first:
            return F.rms_norm(o.to(dtype) * gate, weight.shape, weight, self.eps).to(o.dtype)
        return (F.rms_norm(o.to(dtype), weight.shape, weight, self.eps) * gate).to(o.dtype)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x), exact at any x.

    Not F.softplus: torch.compile takes the gradient of that to be contiguous where it is not (torch 2.13).
    """
    return torch.logaddexp(x, x.new_zeros(()))


def unit_length(x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(|x|^2 + eps) along the last axis, in at least fp32; zero stays zero. Source: fla's l2norm."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def unit_steps(logits: torch.Tensor, scans: int) -> torch.Tensor:
    """Sigmoid in at least fp32 of one logit a scan, head and token: [B, N, S H] -> [S, B, H, N, 1]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return rearrange(logits, "b n (s h w) -> s b h n w", s=scans, w=1).sigmoid()


def mean_of_scans(
    scan: Callable[..., torch.Tensor], shared: Sequence[torch.Tensor], directed: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Run a causal scan over tokens forward, and backward where `directed` has two; return the mean.

    `shared` are [B, H, N, D], the same for both directions; `directed` are [S, B, H, N, W], S 1 (forward)
    or 2 (forward, backward). Both directions are one call with twice the batch; token i of the result is
    the mean of what the scan from the first and the one from the last token give it.
    Source: ViG arXiv:2405.18425 ("direction-wise gating": shared projections, gates by direction, the mean of
    both); released code read.
    """
    if len(directed[0]) == 1:
        return scan(*shared, *(z[0] for z in directed))
    both = (torch.cat((z, z.flip(2))) for z in shared)
    out = scan(*both, *(torch.cat((z[0], z[1].flip(2))) for z in directed))
    forward, backward = out.chunk(2)
    return (forward + backward.flip(2)) / 2
