"""A depthwise convolution whose filters are given for each image, not learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def predicted_convolution(x: torch.Tensor, filters: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Convolve tokens x [B, N, C] on the grid with filters [B, C, k, k] of their own image, zero-padded.

    [B, N, C] -> [B, N, C]; k odd. One convolution with B C groups, in x's dtype.
    """
    batch, _, channels = x.shape
    image = x.transpose(1, 2).reshape(1, batch * channels, *grid)
    kernels = filters.reshape(batch * channels, 1, *filters.shape[2:]).to(x.dtype)
    out = F.conv2d(image, kernels, padding=filters.shape[-1] // 2, groups=batch * channels)
    return out.view(batch, channels, -1).transpose(1, 2)
