"""ReLU linear attention as released with Sana."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import nn

import attnbench
from attnbench.layers import (
    Association,
    QKVProjection,
    contraction_macs,
    linear_attention,
    merge_heads,
    split_heads,
)


class LinearOptions(attnbench.BackendOptions):
    """Options of `linear`."""

    qk_norm: bool = False
    """RMSNorm of queries and keys over the full width: off in Sana's image models, on in Sana 1.5."""
    qk_norm_eps: float = Field(default=1e-5, gt=0.0)
    """eps of that RMSNorm (1e-5 in Sana's released code); only with `qk_norm: true`."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator."""
    association: Association = "auto"
    """Order of the two matmuls; `auto` takes the cheaper one for N tokens and head width D."""

    @model_validator(mode="after")
    def _no_idle_eps(self) -> LinearOptions:
        if not self.qk_norm and self.qk_norm_eps != type(self).model_fields["qk_norm_eps"].default:
            raise ValueError(
                f"qk_norm_eps: {self.qk_norm_eps} does nothing with qk_norm: false; leave it out"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_is_used(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the eps of a norm that is not there: without one, nothing is computed again."""
        unused = () if self.qk_norm else ("qk_norm_eps",)
        return {name: value for name, value in written(self).items() if name not in unused}


class LinearAttention(nn.Module):
    """o_i = ReLU(q_i) (sum_j ReLU(k_j)^T v_j) / (ReLU(q_i) . sum_j ReLU(k_j) + eps), per head.

    [B, N, C] -> [B, N, C]. Projections q, k, v without bias, output with bias; the sum over keys
    and the division in fp32. With `qk_norm: true` the attention of Sana 1.5.
    Source: Sana arXiv:2410.10629, sec. 2.2 (LiteLA); arXiv:2601.13683 eq. 4; for Sana 1.5 (arXiv:2501.18427)
    the released code (NVlabs/Sana, sana_blocks.py; sana1-5_config turns qk_norm on).
    """

    def __init__(self, site: attnbench.AttentionSite, options: LinearOptions) -> None:
        super().__init__()
        self.num_heads, self.options = site.num_heads, options
        self.qkv = QKVProjection(site.dim, bias=False)
        eps = options.qk_norm_eps
        self.q_norm = nn.RMSNorm(site.dim, eps=eps) if options.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(site.dim, eps=eps) if options.qk_norm else nn.Identity()
        self.out = nn.Linear(site.dim, site.dim)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))  # [B, H, N, D]
        eps, order = self.options.eps, self.options.association
        o = linear_attention(q, k, v, eps=eps, association=order, rectify=True)
        return self.out(merge_heads(o))


def macs(site: attnbench.AttentionSite, options: LinearOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 N C min(N, D) for the attention."""
    n, c = site.num_tokens, site.dim
    norm = 2 * 4 * n * c if options.qk_norm else 0
    return attnbench.MacCount(linear=4 * n * c * c, norm=norm) + contraction_macs(site, options.association)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `linear`."""
    yield attnbench.AttentionBackend(
        name="linear",
        summary="ReLU linear attention as in Sana; with qk_norm as in Sana 1.5",
        family="linear",
        source="Sana arXiv:2410.10629; Sana 1.5 arXiv:2501.18427; arXiv:2601.13683 eq. 4",
        options=LinearOptions,
        symmetry="permutation",
        build=LinearAttention,
        macs=macs,
        complexity="linear",
    )
