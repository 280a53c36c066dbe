"""Sampled images on disk: shards `samples-00000.npz`, ... in the order of the sample index.

A shard's bytes depend on its images and labels alone; how long it took, and the checksum of these bytes,
stand in a record beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnbench.errors import CheckpointError, StorageError, cannot_read
from attnbench.results import Record
from attnbench.storage.arrays import DAMAGED_NPZ
from attnbench.storage.atomic import atomic_path
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import SAMPLE_SHARDS, sample_shard
from attnbench.storage.records import read_record, write_record

SHARD_SIZE = 1000  # images


class ShardTimes(Record):
    """How long a shard took, in seconds; on a GPU, decoding overlaps denoising."""

    total_s: float
    denoise_s: float
    decode_s: float


class ShardRecord(ShardTimes):
    """What stands beside a shard: its times, and what tells whether it is the one that was written."""

    shard_sha256: str = ""
    """Of the shard's file; empty in what earlier versions wrote."""
    drawn_again: bool = False
    """Whether a damaged shard was in its place."""


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
    replaces = path.exists()
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, arr_0=shard.images, labels=shard.labels)
        record = ShardRecord(
            **shard.times.model_dump(), shard_sha256=file_sha256(temporary), drawn_again=replaces
        )
        write_record(_record_path(path), record)  # first: the shard ends the work


def is_whole(path: Path, num_images: int) -> bool:
    """Tell whether a shard of an earlier run is there as it was written; else it must be drawn (again).

    Raises StorageError where it is there and cannot be read: drawing it again may take hours.
    """
    record = read_record(_record_path(path), ShardRecord)
    try:
        if record is not None and record.shard_sha256 and path.exists():
            return file_sha256(path) == record.shard_sha256
        with np.load(path) as arrays:  # of an earlier version: zip's own checksums are looked at
            images, labels = arrays["arr_0"], arrays["labels"]
    except (*DAMAGED_NPZ, FileNotFoundError):
        return False
    except OSError as error:
        raise StorageError(cannot_read(path, error, "delete it and sample again")) from error
    return record is not None and len(images) == len(labels) == num_images


def iterate_shards(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images uint8 [n, H, W, C] and labels int64 [n] of every shard, one in memory at a time.

    Raises CheckpointError when a shard is damaged.
    """
    for path in sorted(folder.glob(SAMPLE_SHARDS)):
        try:
            with np.load(path) as arrays:
                images, labels = arrays["arr_0"], arrays["labels"]
        except (*DAMAGED_NPZ, OSError) as error:
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
        except (*DAMAGED_NPZ, OSError) as error:
            raise _unreadable(path, error) from error
    return np.stack([images[index] for index in indices])


def read_records(folder: Path, count: int) -> list[ShardRecord]:
    """Return what stands beside the first `count` shards; raises CheckpointError when one is missing."""
    found = []
    for path in (shard_path(folder, number) for number in range(count)):
        record = read_record(_record_path(path), ShardRecord)
        if record is None or not path.exists():
            raise CheckpointError(f"{path} is missing; run the same command again to draw it")
        found.append(record)
    return found


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    again = "delete it and sample again"
    if isinstance(error, OSError):
        return CheckpointError(cannot_read(path, error, again))
    return CheckpointError(f"{path} cannot be read ({error}); {again}")
