"""The resize of protocol `clean`: what clean-fid does to an image before a feature network sees it."""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch

from attnbench.metrics.threads import each


def clean_resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """Return uint8 [B, H, W, C] as float32 [B, C, side, side] in 0 ... 255, on the CPU.

    Each channel in float32: bicubic with antialias, clipped, not rounded to whole numbers.
    Source: clean-fid, `build_resizer("clean")` (arXiv:2104.11222), of which this is an exact equal.
    """
    pixels = images.cpu().numpy()
    count, _, _, channels = pixels.shape
    found = np.empty((count, channels, side, side), np.float32)

    def resize(number: int) -> None:
        planes = np.ascontiguousarray(pixels[number].transpose(2, 0, 1), np.float32)  # [C, H, W]
        for plane, target in zip(planes, found[number], strict=True):
            picture = PIL.Image.fromarray(plane).resize((side, side), PIL.Image.Resampling.BICUBIC)
            np.clip(np.asarray(picture), 0, 255, out=target)

    each(resize, range(count))
    return torch.from_numpy(found)
