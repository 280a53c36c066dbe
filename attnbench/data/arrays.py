"""An image set that lies in memory as one array."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ArrayImages:
    """Images uint8 [N, H, W, C] with labels int64 [N], both in memory."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    def get(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the images at `indices` (int64 [B]) as uint8 [B, H, W, C]."""
        return self.images[indices]
