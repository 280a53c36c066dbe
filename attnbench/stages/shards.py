"""Sampled images on disk: shards `samples-00000.npz`, ... in the order of the sample index."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnbench.errors import CheckpointError
from attnbench.stages.store import atomic_path

SHARD_SIZE = 1000  # images
_DAMAGED = (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some consecutive samples and the time it took to draw them."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int64 [n]
    seconds: float


def shard_ranges(total: int) -> list[range]:
    """Return the sample indices of each shard."""
    return [range(start, min(start + SHARD_SIZE, total)) for start in range(0, total, SHARD_SIZE)]


def shard_path(folder: Path, number: int) -> Path:
    """Return where shard `number` lies."""
    return folder / f"samples-{number:05d}.npz"


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard whole or not at all, as `arr_0`, `labels` and `seconds`; raises StorageError."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=shard.images, labels=shard.labels, seconds=np.float64(shard.seconds))


def read_shard(path: Path, num_images: int) -> Shard | None:
    """Read a shard of an earlier run; None when it is absent or damaged and must be drawn (again)."""
    try:
        with np.load(path) as arrays:
            shard = Shard(images=arrays["arr_0"], labels=arrays["labels"], seconds=float(arrays["seconds"]))
    except _DAMAGED:
        return None
    return shard if len(shard.images) == len(shard.labels) == num_images else None


def read_images(folder: Path, indices: Sequence[int]) -> np.ndarray:
    """Return the images with these sample indices, uint8 [n, H, W, C], one shard in memory at a time.

    Raises CheckpointError when a shard is missing or damaged.
    """
    images: dict[int, np.ndarray] = {}
    for number in sorted({index // SHARD_SIZE for index in indices}):
        path = shard_path(folder, number)
        try:
            with np.load(path) as arrays:
                shard = arrays["arr_0"]
                images |= {i: shard[i % SHARD_SIZE] for i in indices if i // SHARD_SIZE == number}
        except _DAMAGED as error:
            raise CheckpointError(f"{path} cannot be read ({error}); delete it and sample again") from error
    return np.stack([images[index] for index in indices])
