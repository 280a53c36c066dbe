"""The spatial features behind sFID: the first channels of a feature map, as one vector."""

from __future__ import annotations

import torch


def first_channels(maps: torch.Tensor, pooled_width: int) -> torch.Tensor:
    """Return the first c channels of maps [B, C, h, w] as [B, h w c], flattened in NHWC order.

    c is the largest number for which h w c <= `pooled_width`, so that spatial and pooled features are of
    one size: 7 of Inception's 17x17 maps (2023 of 2048), 26 of EfficientNet-Lite0's 7x7 (1274 of 1280).
    Source: arXiv:2103.03841 (sFID: 7 channels, comparable to pool_3); order of guided-diffusion's evaluator.
    """
    _, channels, height, width = maps.shape
    kept = min(channels, max(1, pooled_width // (height * width)))
    return maps[:, :kept].permute(0, 2, 3, 1).flatten(1)
