"""Softmax attention, the quadratic baseline of DiT, in three implementations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads


class SoftmaxOptions(attnbench.BackendOptions):
    """Options of `softmax`."""

    implementation: Literal["sdpa", "math", "xformers"] = "sdpa"
    """`sdpa`: torch's fused kernel; `math`: the formula; `xformers`: memory_efficient_attention (GPU)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (DiT: yes)."""


class SoftmaxAttention(nn.Module):
    """softmax(q k^T / sqrt(D)) v per head, then an output projection.

    [B, N, C] -> [B, N, C]; the softmax in the input's dtype with fp32 accumulation inside the
    fused kernels. Source: arXiv:2601.13683, eq. 3; DiT arXiv:2212.09748.
    """

    def __init__(self, site: attnbench.AttentionSite, options: SoftmaxOptions) -> None:
        super().__init__()
        self.num_heads = site.num_heads
        self.attend = {"sdpa": _sdpa, "math": _math, "xformers": _xformers}[options.implementation]
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = (split_heads(z, self.num_heads) for z in self.qkv(x))  # [B, H, N, D]
        return self.out(merge_heads(self.attend(q, k, v)))


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _math(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, N, N]
    return scores.softmax(-1) @ v


def _xformers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from xformers.ops import memory_efficient_attention

    by_token = (z.transpose(1, 2) for z in (q, k, v))  # xformers wants [B, N, H, D]
    return memory_efficient_attention(*by_token).transpose(1, 2)


def supports(
    site: attnbench.AttentionSite, options: SoftmaxOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Return why the xformers implementation cannot run here; the others always can."""
    if options.implementation != "xformers":
        return None
    try:
        from xformers.ops import fmha
    except Exception as error:  # noqa: BLE001 - a binary built for another torch fails in many ways
        return (
            f"xformers does not import ({type(error).__name__}: {error}); pip install 'attnbench[xformers]'"
        )
    if device.type != "cuda":
        return f"xformers has no kernels for {device.type}; use implementation: sdpa"
    probe = torch.empty(1, site.num_tokens, site.num_heads, site.head_dim, dtype=dtype, device=device)
    reasons = [op.not_supported_reasons(fmha.Inputs(probe, probe, probe)) for op in fmha.ALL_FW_OPS]
    return None if not all(reasons) else "no xformers kernel fits: " + "; ".join(reasons[0])


def macs(site: attnbench.AttentionSite, options: SoftmaxOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N^2 C for the attention."""
    n, c = site.num_tokens, site.dim
    return attnbench.MacCount(linear=4 * n * c * c, attention=2 * n * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `softmax`."""
    yield attnbench.AttentionBackend(
        name="softmax",
        summary="softmax attention as in DiT",
        family="softmax",
        source="DiT arXiv:2212.09748; arXiv:2601.13683 eq. 3",
        options=SoftmaxOptions,
        symmetry="permutation",
        build=SoftmaxAttention,
        macs=macs,
        supports=supports,
        complexity="quadratic",
    )
