"""How Mamba's step sizes and decays start, and the short causal convolution before its scan."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from attnbench.layers.depthwise import on_grid

STEP_RANGE = (0.001, 0.1)
STEP_FLOOR = 1e-4


def step_bias(shape: tuple[int, ...]) -> torch.Tensor:
    """Draw biases b whose softplus is log-uniform between 0.001 and 0.1. Source: Mamba's released code.

    softplus(b) = d at b = d + log(1 - exp(-d)).
    """
    low, high = (math.log(end) for end in STEP_RANGE)
    step = torch.exp(torch.rand(shape) * (high - low) + low).clamp(min=STEP_FLOOR)
    return step + torch.log(-torch.expm1(-step))


class CausalConv(nn.Module):
    """A depthwise convolution over a token and the k - 1 before it, then SiLU.

    As a convolution of an image one token wide, its channels last as tokens have them: nothing is transposed,
    which on a CPU makes it three times faster than a Conv1d.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.before = kernel_size - 1
        self.conv = nn.Conv2d(channels, channels, (kernel_size, 1), groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, C] -> [B, N, C]."""
        padded = F.pad(x, (0, 0, self.before, 0))
        grid = (padded.shape[1], 1)
        return on_grid(lambda image: F.silu(self.conv(image)), padded, grid, x.shape[-1])
