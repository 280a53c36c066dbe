"""EDiT's linear compressed attention: convolved queries, keys and values on a half-size grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

import attnbench
from attnbench.layers import Association, QKVProjection, linear_attention, merge_heads, on_grid, split_heads

NormOrder = Literal["norm_first", "activation_first"]


class EDiTOptions(attnbench.BackendOptions):
    """Options of `edit`. What could be read nowhere is marked as ours."""

    rho: float = Field(default=0.5, gt=0.0, le=1.0)
    """Width between the two query convolutions, as a share of the model's width."""
    norm_order: NormOrder = "norm_first"
    """GroupNorm before LeakyReLU, as the paper's formula is quoted and as in LinFusion's released code, on
    which EDiT builds; one summary of the paper has it the other way round."""
    norm_groups: PositiveInt = 8
    """Groups of the GroupNorm (ours); must divide rho times the width."""
    negative_slope: float = 0.01
    """Slope of LeakyReLU below zero (ours: torch's default)."""
    qkv_bias: bool = True
    """Bias of the query, key, value projection (as in DiT)."""
    eps: float = Field(default=1e-6, gt=0.0)
    """Added to the denominator (ours)."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N queries, N/4 keys and head width D."""


class EDiTAttention(nn.Module):
    """Eq. 4 with q = ReLU(W_q (x + f(x))), k = ReLU(DW(W_k x)), v = DW(W_v x), per head.

    [B, N, C] -> [B, N, C]. f = Conv_1x1(LeakyReLU(GroupNorm(Conv_3x3(x)))) narrows to rho C and back;
    DW is a depthwise 3x3 convolution of stride 2 with zero padding, one for K and one for V: M =
    ceil(height/2) ceil(width/2) keys. The sum over keys and the division in fp32 for half types.
    Source: EDiT arXiv:2503.16726. Its text could not be had beyond the introduction, and there is no released
    code: the formula is the one that reading notes quote, ReLU(Linear(X + Conv(LeakyReLU(GN(Conv(X)))))) and
    Conv(Linear(X)), 3x3 then 1x1, stride 2; separate compressors and rho = 1/2 are inferred from the GFLOPs
    in arXiv:2601.13683.
    """

    def __init__(self, site: attnbench.AttentionSite, options: EDiTOptions) -> None:
        super().__init__()
        dim, narrow = site.dim, narrow_width(site, options)
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(dim, bias=options.qkv_bias)
        self.reduce = nn.Conv2d(dim, narrow, 3, padding=1)
        self.norm = nn.GroupNorm(options.norm_groups, narrow)
        self.restore = nn.Conv2d(narrow, dim, 1)
        self.compress_k = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim)
        self.compress_v = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        dim, grid = x.shape[-1], context.grid
        fused = x + on_grid(self._convolve, x, grid, dim)
        q, k, v = self._project(fused, x)
        k = on_grid(self.compress_k, k, grid, dim)  # [B, M, C]
        v = on_grid(self.compress_v, v, grid, dim)
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))
        order = matmul_order(self.options.association, q.shape[-2], k.shape[-2], q.shape[-1])
        o = linear_attention(q, k, v, eps=self.options.eps, association=order, rectify=True)
        return self.out(merge_heads(o))

    def _convolve(self, image: torch.Tensor) -> torch.Tensor:
        z = self.reduce(image)
        if self.options.norm_order == "norm_first":
            z = F.leaky_relu(self.norm(z), self.options.negative_slope)
        else:
            z = self.norm(F.leaky_relu(z, self.options.negative_slope))
        return self.restore(z)

    def _project(
        self, for_query: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Apply the shared projection in two parts: it must start as that of the other backends does."""
        linear, dim = self.qkv.qkv, x.shape[-1]
        bias_q = bias_kv = None
        if linear.bias is not None:
            bias_q, bias_kv = linear.bias[:dim], linear.bias[dim:]
        k, v = F.linear(x, linear.weight[dim:], bias_kv).chunk(2, dim=-1)
        return F.linear(for_query, linear.weight[:dim], bias_q), k, v


def narrow_width(site: attnbench.AttentionSite, options: EDiTOptions) -> int:
    """Return the channels between the two query convolutions, rho C rounded."""
    return round(options.rho * site.dim)


def matmul_order(
    association: Association, queries: int, keys: int, head_dim: int
) -> Literal["linear", "quadratic"]:
    """Resolve `auto` for unequal numbers of queries and keys.

    q (k^T v) costs (N + M) C D, (q k^T) v costs 2 N M C multiply-adds.
    """
    if association != "auto":
        return association
    return "quadratic" if 2 * queries * keys < (queries + keys) * head_dim else "linear"


def supports(
    site: attnbench.AttentionSite, options: EDiTOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse groups that do not divide the narrow width."""
    narrow = narrow_width(site, options)
    if narrow < 1 or narrow % options.norm_groups:
        allowed = [groups for groups in range(1, narrow + 1) if narrow % groups == 0]
        return (
            f"norm_groups={options.norm_groups} does not divide the {narrow} channels that rho={options.rho} "
            f"leaves of dim={site.dim}; choose {f'one of {allowed}' if allowed else 'a larger rho'}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: EDiTOptions) -> attnbench.MacCount:
    """4 N C^2 projections, 10 N C rho C query convolutions, 18 M C compressors, then the attention.

    The projection is one nn.Linear applied in two parts, so it counts as linear. GroupNorm counts in
    neither convention.
    """
    (height, width), n, c, d = site.grid, site.num_tokens, site.dim, site.head_dim
    m = -(-height // 2) * -(-width // 2)
    cost = {"linear": (n + m) * c * d, "quadratic": 2 * n * m * c}
    return attnbench.MacCount(
        linear=4 * n * c * c + 10 * n * c * narrow_width(site, options) + 2 * 9 * m * c,
        attention=cost[matmul_order(options.association, n, m, d)],
        attention_cheaper=min(cost.values()),
    )


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `edit`."""
    yield attnbench.AttentionBackend(
        name="edit",
        summary="linear compressed attention as in EDiT",
        family="linear",
        source="EDiT arXiv:2503.16726, sec. 3; formula as reading notes quote it",
        options=EDiTOptions,
        build=EDiTAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
