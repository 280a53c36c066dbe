"""The resize of protocol `clean`: what clean-fid does to an image before a feature network sees it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch


def clean_resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as float32 [B, C, side, side] in 0 ... 255, on the CPU.

    Each channel in float32: bicubic with antialias, clipped, not rounded to whole numbers.
    Source: clean-fid, `build_resizer("clean")` (arXiv:2104.11222), of which this is an exact equal.
    """
    channels = images.cpu().permute(0, 3, 1, 2).flatten(0, 1).numpy()  # [B C, H, W]
    resized = np.stack([_resized_channel(channel, side) for channel in channels])
    return torch.from_numpy(resized).unflatten(0, (len(images), images.shape[3]))


def _resized_channel(channel: np.ndarray, side: int) -> np.ndarray:
    picture = PIL.Image.fromarray(channel.astype(np.float32))
    return np.asarray(picture.resize((side, side), PIL.Image.Resampling.BICUBIC)).clip(0, 255)
