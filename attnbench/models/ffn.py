"""The feed-forward networks of a block: DiT's MLP, Sana's Mix-FFN, DiG's SwiGLU and mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.contract import MacCount
from attnbench.layers.depthwise import DepthwiseConv
from attnbench.models.experts import build_experts, expert_macs
from attnbench.specs import FfnSpec


class TokenMlp(nn.Module):
    """Linear, tanh-GELU, Linear on [B, N, C]; ignores the grid. Source: DiT, with the names of timm's Mlp."""

    # not timm's own class: with torchvision, which it imports, it takes longer to import than torch does

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class GluMbConv(nn.Module):
    """1x1 to 2h, SiLU, depthwise 3x3 on 2h, a * SiLU(g), 1x1 back to C (no bias) on [B, N, C].

    1x1 convolutions are written as Linear layers on tokens: the same sums. They start as the skeleton's
    linear layers do, Xavier-uniform with biases 0 (ours); released, they are Conv2d and start as torch's do.
    Source: Sana's Mix-FFN (GLUMBConv), arXiv:2410.10629 and released code.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * hidden)
        self.conv = DepthwiseConv(2 * hidden, 3)
        self.reduce = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        a, g = self.conv(F.silu(self.expand(x)), grid).chunk(2, dim=-1)
        return self.reduce(a * F.silu(g))


class SwiGlu(nn.Module):
    """(SiLU(x W_g) * x W_v) W_o without biases on [B, N, C]; ignores the grid.

    Source: arXiv:2002.05202, eq. 6; DiG arXiv:2405.18428 and its released code, which applies W_o in a
    fused function and not as a module: a module hook, and so the paper's count, does not see it.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 2 * hidden, bias=False)
        self.reduce = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        gate, value = self.expand(x).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * value, self.reduce.weight)


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": TokenMlp,
    "glumbconv": GluMbConv,
    "swiglu": SwiGlu,
}


def build_ffn(spec: FfnSpec, dim: int, layer_idx: int = 0) -> nn.Module:
    """Build the feed-forward network that a recipe names for a block; called as ffn(x [B, N, C], grid).

    A mixture of experts is called as ffn(x [B, N, C], context).
    """
    kind = spec.kind_at(layer_idx)
    return build_experts(spec, dim) if kind == "moe" else KINDS[kind](dim, spec.hidden_width(dim))


def ffn_macs(spec: FfnSpec, dim: int, num_tokens: int, layer_idx: int = 0) -> MacCount:
    """Multiply-adds of a block's feed-forward network at batch 1."""
    hidden, kind = spec.hidden_width(dim), spec.kind_at(layer_idx)
    if kind == "moe":
        return expert_macs(spec, dim, num_tokens)
    if kind == "mlp":
        return MacCount(linear=2 * num_tokens * dim * hidden)
    if kind == "swiglu":
        return MacCount(linear=num_tokens * dim * 2 * hidden, unhooked=num_tokens * hidden * dim)
    return MacCount(linear=num_tokens * (dim * 2 * hidden + 9 * 2 * hidden + hidden * dim))
