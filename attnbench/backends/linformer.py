"""Linformer: keys and values projected to a few learned mixtures of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn

import attnbench
from attnbench.layers import QKVProjection, merge_heads, split_heads


class LinformerOptions(attnbench.BackendOptions):
    """Options of `linformer`."""

    rank: PositiveInt = 32
    """Mixtures of tokens, the paper's k; not above the number of tokens (released default: N / 4)."""
    shared_projection: bool = False
    """One projection over tokens for keys and values (the paper's key-value sharing, F = E)."""
    qkv_bias: bool = False
    """Bias of the query, key, value projection (eq. 7: no; released code: yes, added after E and F)."""


class LinformerAttention(nn.Module):
    """softmax(q (E k)^T / sqrt(D)) (F v) per head, E and F learned [rank, N] and shared by the heads.

    [B, N, C] -> [B, N, C]; the softmax through torch's fused kernel. E and F belong to the site's
    number of tokens: a module cannot run on another grid. The released code mixes tokens before the
    projection of k and v, E (x W) = (E x) W, which is cheaper and equal without a bias; here k and v
    come from the shared projection. Initialised as released, Xavier-uniform with gain 1/sqrt(2).
    Source: arXiv:2006.04768, eq. 7; released code (fairseq examples/linformer) read.
    """

    def __init__(self, site: attnbench.AttentionSite, options: LinformerOptions) -> None:
        super().__init__()
        self.num_heads = site.num_heads
        self.qkv = QKVProjection(site.dim, bias=options.qkv_bias)
        self.out = nn.Linear(site.dim, site.dim)
        self.key_mixtures = _mixtures(options.rank, site.num_tokens)
        self.value_mixtures = None if options.shared_projection else _mixtures(options.rank, site.num_tokens)

    def forward(self, x: torch.Tensor, context: attnbench.AttentionContext) -> torch.Tensor:
        q, k, v = self.qkv(x)
        k = self.key_mixtures @ k  # [B, k, C], one matmul for all heads
        v = (self.key_mixtures if self.value_mixtures is None else self.value_mixtures) @ v
        q, k, v = (split_heads(z, self.num_heads) for z in (q, k, v))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def _mixtures(rank: int, num_tokens: int) -> nn.Parameter:
    mixtures = nn.Parameter(torch.empty(rank, num_tokens))
    nn.init.xavier_uniform_(mixtures, gain=math.sqrt(0.5))
    return mixtures


def supports(
    site: attnbench.AttentionSite, options: LinformerOptions, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Refuse more mixtures than tokens: they would cost more than softmax attention and say no more."""
    if options.rank > site.num_tokens:
        return (
            f"rank={options.rank} exceeds the {site.num_tokens} tokens of grid {site.grid}; "
            f"choose at most {site.num_tokens}"
        )
    return None


def macs(site: attnbench.AttentionSite, options: LinformerOptions) -> attnbench.MacCount:
    """4 N C^2 for the projections, 2 k N C for the mixtures, 2 k N C for the attention."""
    n, c = site.num_tokens, site.dim
    # functional in the released code too: no module hook sees the mixtures
    mixing = 2 * options.rank * n * c
    return attnbench.MacCount(linear=4 * n * c * c, unhooked=mixing, attention=2 * options.rank * n * c)


@attnbench.hookimpl
def attnbench_backends() -> Iterator[attnbench.AttentionBackend]:
    """Yield `linformer`."""
    yield attnbench.AttentionBackend(
        name="linformer",
        summary="Linformer: softmax over a few learned mixtures of tokens",
        family="compressed",
        source="Linformer arXiv:2006.04768, eq. 7",
        options=LinformerOptions,
        build=LinformerAttention,
        macs=macs,
        supports=supports,
        complexity="linear",
    )
