"""Sampled images on disk: shards `samples-00000.npz`, ... in the order of the sample index.

A shard's bytes depend on its images and labels alone; how long it took stands in a file beside it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnbench.errors import CheckpointError, StorageError, cannot_read
from attnbench.results import Record
from attnbench.storage.atomic import atomic_path, atomic_write
from attnbench.storage.names import SAMPLE_SHARDS, sample_shard
from attnbench.storage.store import read_record

SHARD_SIZE = 1000  # images
_DAMAGED = (ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile)


class ShardTimes(Record):
    """How long a shard took, in seconds; on a GPU, decoding overlaps denoising."""

    total_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some consecutive samples and the time it took to draw them."""

    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int64 [n]
    times: ShardTimes


def shard_ranges(total: int) -> list[range]:
    """Return the sample indices of each shard."""
    return [range(start, min(start + SHARD_SIZE, total)) for start in range(0, total, SHARD_SIZE)]


def shard_path(folder: Path, number: int) -> Path:
    """Return where shard `number` lies."""
    return folder / sample_shard(number)


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard whole or not at all, as `arr_0` and `labels`; raises StorageError."""
    atomic_write(_times_path(path), shard.times.model_dump_json().encode())  # first: the shard ends the work
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, arr_0=shard.images, labels=shard.labels)


def read_shard(path: Path, num_images: int) -> Shard | None:
    """Read a shard of an earlier run; None when it is absent or damaged and must be drawn (again).

    Raises StorageError where it is there and cannot be read: drawing it again may take hours.
    """
    times = read_record(_times_path(path), ShardTimes)
    try:
        with np.load(path) as arrays:
            images, labels = arrays["arr_0"], arrays["labels"]
    except (*_DAMAGED, FileNotFoundError):
        return None
    except OSError as error:
        raise StorageError(cannot_read(path, error, "delete it and sample again")) from error
    if times is None or not len(images) == len(labels) == num_images:
        return None
    return Shard(images=images, labels=labels, times=times)


def iterate_shards(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images uint8 [n, H, W, C] and labels int64 [n] of every shard, one in memory at a time.

    Raises CheckpointError when a shard is damaged.
    """
    for path in sorted(folder.glob(SAMPLE_SHARDS)):
        try:
            with np.load(path) as arrays:
                images, labels = arrays["arr_0"], arrays["labels"]
        except (*_DAMAGED, OSError) as error:
            raise _unreadable(path, error) from error
        yield images, labels


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
        except (*_DAMAGED, OSError) as error:
            raise _unreadable(path, error) from error
    return np.stack([images[index] for index in indices])


def read_times(folder: Path, count: int) -> list[ShardTimes]:
    """Return the times of the first `count` shards; raises CheckpointError when one is missing."""
    found = []
    for path in (shard_path(folder, number) for number in range(count)):
        times = read_record(_times_path(path), ShardTimes)
        if times is None or not path.exists():
            raise CheckpointError(f"{path} is missing; run the same command again to draw it")
        found.append(times)
    return found


def _times_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    again = "delete it and sample again"
    if isinstance(error, OSError):
        return CheckpointError(cannot_read(path, error, again))
    return CheckpointError(f"{path} cannot be read ({error}); {again}")
