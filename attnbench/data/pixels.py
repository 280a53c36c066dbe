"""The one mapping between uint8 images and the space diffusion models work in."""

from __future__ import annotations

import torch


def to_model_space(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 [B, H, W, C] images as float32 [B, C, H, W] in [-1, 1]: x / 127.5 - 1.

    >>> to_model_space(torch.tensor([[[[0], [255]]]], dtype=torch.uint8)).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(x: torch.Tensor) -> torch.Tensor:
    """Return float [B, C, H, W] in model space as uint8 [B, H, W, C]: round(127.5 x + 127.5), clipped.

    Call it once, after sampling: rounding twice changes pixels. The maths is fp32.

    >>> to_images(torch.tensor([[[[-1.0, 0.0, 7.0]]]])).flatten().tolist()
    [0, 128, 255]
    """
    return (127.5 * x.float() + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
