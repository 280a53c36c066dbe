"""The one query, key, value projection that all comparable backends share, and the head split."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


class QKVProjection(nn.Module):
    """Project [B, N, C] to query, key and value, each [B, N, C], with one matrix product."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return views of one [B, N, 3C] tensor; make them contiguous only where it pays."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return q, k, v

    def part(self, x: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """Apply parts `first` to `end - 1` of query (0), key (1), value (2): [B, N, C] -> [B, N, parts x C].

        For attentions that project other tokens to queries than to keys: they start from the same matrix.
        """
        rows, bias = slice(first * x.shape[-1], end * x.shape[-1]), self.qkv.bias
        return F.linear(x, self.qkv.weight[rows], None if bias is None else bias[rows])


class ZeroLinear(nn.Linear):
    """A Linear layer that starts as zero: what it projects joins a trained model without a jolt."""

    keeps_own_init = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[B, N, C] -> [B, H, N, D]; a view."""
    return rearrange(x, "b n (h d) -> b h n d", h=num_heads)


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """[B, H, N, D] -> [B, N, C]."""
    return rearrange(x, "b h n d -> b n (h d)")
