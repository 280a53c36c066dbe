"""Small sets of images on disk, for tests of what may be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from attnbench.errors import DataError
from attnbench.evaluation.images import open_images


def pictures(count: int, *, height: int = 5, width: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random images uint8 [count, height, width, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write one image file, grey where it has one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def png_folder(folder: Path, images: np.ndarray) -> Path:
    """Write images as 0.png, 1.png, ..., without leading zeros."""
    for index, pixels in enumerate(images):
        save(folder / f"{index}.png", pixels)
    return folder


def all_images(path: Path, **options) -> torch.Tensor:
    """Everything a collection yields, in order."""
    return torch.cat([images for images, _ in open_images(path, **options).batches(3)])


def refused(path: Path, *words: str, **options) -> str:
    """The message of the DataError that opening and decoding `path` raises; it holds all `words`."""
    with pytest.raises(DataError) as caught:
        all_images(path, **options)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    return message


def npz_shards(folder: Path, images: np.ndarray, size: int) -> Path:
    """Write shards as the stage `sample` does."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, len(images), size)):
        part = images[first : first + size]
        labels = np.arange(first, first + len(part)) % 3
        np.savez(folder / f"samples-{number:05d}.npz", arr_0=part, labels=labels, seconds=np.float64(1))
    return folder


def npz(tmp_path: Path, **arrays: np.ndarray) -> Path:
    """Write an npz file with these arrays."""
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"
