"""Images in npz files: ADM's layout, and the shards that the stage `sample` writes."""

from __future__ import annotations

import math
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy

from attnbench.data.layout import printable
from attnbench.errors import DataError, cannot_read
from attnbench.evaluation.collection import (
    SHARD_SIZE,
    ImageCollection,
    ImageShard,
    check_labels,
    listed,
    pixel_digests,
)
from attnbench.storage.arrays import DAMAGED_NPZ
from attnbench.storage.names import SAMPLE_SHARDS, sample_shard

CHECKED_AT_ONCE = 2**24  # bytes
IMAGES, LABELS = "arr_0", ("labels", "arr_1")
CLASS_NAMES = "class_names"  # what label 0, 1, ... are called: ours alone, other tools do not read it
DAMAGED = (OSError, *DAMAGED_NPZ)
_AS_UINT8 = "numpy.clip(numpy.round(127.5 * x + 127.5), 0, 255).astype(numpy.uint8)"


@dataclass(kw_only=True)
class NpzImages:
    """The array `arr_0` of an npz file, uint8 [N, H, W, C], read in slices and never whole.

    A stored array is read where it lies; a compressed one is a stream, in which going back means
    starting again, so the last slice is kept. Source: numpy.lib.format, zipfile; the layout is that of
    github.com/openai/guided-diffusion, evaluations/evaluator.py.
    """

    path: Path
    shape: tuple[int, int, int, int]
    start: int | None
    """First byte of the pixels in the file; None: compressed."""
    _stream: IO[bytes] | None = field(default=None, repr=False)
    _next: int = 0
    _kept: tuple[int, np.ndarray] = field(default_factory=lambda: (0, np.empty((0,), np.uint8)), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _digests: torch.Tensor | None = field(default=None, repr=False)

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return images first ... first + count - 1 anew, uint8 [count, H, W, C]; raises DataError."""
        try:
            with self._lock:
                return self._stored(first, count) if self.start is not None else self._streamed(first, count)
        except DAMAGED as error:
            raise damaged(self.path, error) from error

    def digests(self, first: int, count: int) -> torch.Tensor:
        """Return the digests of images first ... first + count - 1, uint8 [count, 16]; raises DataError.

        Of a stored array all are found at first use, in the one pass in which zip compares its checksum:
        `rows` reads it where it lies, past the zip archive. What is compressed zip checks as it reads.
        """
        if self.start is None:
            try:
                with self._lock:
                    return pixel_digests(self._kept_rows(first, count))
            except DAMAGED as error:
                raise damaged(self.path, error) from error
        if self._digests is None:
            self._digests = self._checked_digests()
        return self._digests[first : first + count]

    def _checked_digests(self) -> torch.Tensor:
        assert self.start is not None
        size, found = math.prod(self.shape[1:]), []
        at_once = max(1, CHECKED_AT_ONCE // size)
        buffer = np.empty((min(at_once, self.shape[0]), *self.shape[1:]), np.uint8)
        try:
            with zipfile.ZipFile(self.path) as archive, _member(archive, IMAGES)[0] as stream:
                stated, header_bytes = archive.getinfo(f"{IMAGES}.npy").CRC, stream.tell()
            with self.path.open("rb") as file:
                file.seek(self.start - header_bytes)
                checksum = zlib.crc32(_exactly(file, header_bytes))
                for first in range(0, self.shape[0], at_once):
                    pixels = buffer[: self.shape[0] - first]
                    if file.readinto(pixels.data) < pixels.nbytes:
                        raise EOFError("bytes are missing")
                    checksum = zlib.crc32(pixels.data, checksum)
                    found.append(pixel_digests(pixels))
            if checksum != stated:
                raise zipfile.BadZipFile(f"Bad CRC-32 for file '{IMAGES}.npy'")
        except DAMAGED as error:
            raise damaged(self.path, error) from error
        return torch.cat(found)

    def _stored(self, first: int, count: int) -> np.ndarray:
        assert self.start is not None
        size = math.prod(self.shape[1:])
        flat = np.fromfile(self.path, np.uint8, count * size, offset=self.start + first * size)
        return flat.reshape(count, *self.shape[1:])

    def _streamed(self, first: int, count: int) -> np.ndarray:
        return self._kept_rows(first, count).copy()  # the caller may write into it

    def _kept_rows(self, first: int, count: int) -> np.ndarray:
        kept_first, kept = self._kept
        if not kept_first <= first <= first + count <= kept_first + len(kept):
            self._kept = first, self._read(first, count)
            kept_first, kept = self._kept
        return kept[first - kept_first :][:count]

    def _read(self, first: int, count: int) -> np.ndarray:
        stream, self._stream = self._stream, None  # an error leaves it nowhere known
        if stream is None or first < self._next:
            stream, self._next = _member(zipfile.ZipFile(self.path), IMAGES)[0], 0
        size = math.prod(self.shape[1:])
        for passed in range(self._next, first, SHARD_SIZE):
            _exactly(stream, min(SHARD_SIZE, first - passed) * size)
        content = _exactly(stream, count * size)
        self._stream, self._next = stream, first + count
        return np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])

    def shards(self) -> Iterator[ImageShard]:
        """Yield the images as shards of a thousand."""
        for first in range(0, self.shape[0], SHARD_SIZE):
            yield _shard(self, first, min(SHARD_SIZE, self.shape[0] - first))


def _shard(images: NpzImages, first: int, count: int) -> ImageShard:
    return ImageShard(
        count=count,
        find_digests=lambda: images.digests(first, count),
        load=lambda: torch.from_numpy(images.rows(first, count)),
        load_one=lambda index: torch.from_numpy(images.rows(first + index, 1)[0]),
        load_rows=lambda start, some: torch.from_numpy(images.rows(first + start, some)),
    )


def _exactly(stream: IO[bytes], num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) < num_bytes:
        raise EOFError(f"{num_bytes - len(content)} bytes are missing")
    return content


def damaged(path: Path, error: BaseException, step: str = "copy or sample it again") -> DataError:
    """Return what to say of an npz that cannot be read, with the next step."""
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(cannot_read(path, error, step))
    return DataError(f"{path} cannot be read ({error}): it is cut or no npz file; {step}")


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every array in an npz, from their headers; raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            return {name: _member(archive, name)[1] for name in names}
    except DAMAGED as error:
        raise damaged(path, error) from error


def open_npz(path: Path) -> tuple[NpzImages, torch.Tensor | None]:
    """Open one npz file: its images and its labels, where it has any; raises DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if IMAGES not in names:
                raise DataError(f"{path} has no array {IMAGES!r}{_what_it_is(names)}")
            shape, start = _find_pixels(path, archive)
        return NpzImages(path=path, shape=shape, start=start), _labels(path, names, shape[0])
    except DAMAGED as error:
        raise damaged(path, error) from error


def _what_it_is(names: list[str]) -> str:
    if {"mu", "sigma"} <= set(names):
        return (
            f" but statistics ({listed(names)}), so there are no images in it: `--reference` takes the file "
            "as it is, for the Frechet distances; for anything else name the images they were computed from"
        )
    return f" but {listed(names)}; save the images as numpy.savez(path, arr_0=images), uint8 [N, H, W, 3]"


def _member(archive: zipfile.ZipFile, name: str) -> tuple[IO[bytes], tuple[int, ...], bool, np.dtype]:
    """Open an array inside an npz at its first element; return stream, shape, Fortran order, dtype."""
    stream = archive.open(f"{name}.npy")
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    return stream, shape, fortran, dtype


def _find_pixels(path: Path, archive: zipfile.ZipFile) -> tuple[tuple[int, int, int, int], int | None]:
    """Check the header of the images; return their shape and where they start in the file."""
    stream, shape, fortran, dtype = _member(archive, IMAGES)
    with stream:
        header_bytes = stream.tell()
    _check_array(path, shape, fortran, dtype)
    info = archive.getinfo(f"{IMAGES}.npy")
    if info.file_size != header_bytes + math.prod(shape):
        raise DataError(
            f"{path}: {IMAGES} holds fewer bytes than its shape {list(shape)} needs; sample it again"
        )
    start = None
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)  # lengths of name and extra field in the local header
            start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4))) + header_bytes
    return (shape[0], shape[1], shape[2], shape[3]), start


def _check_array(path: Path, shape: tuple[int, ...], fortran: bool, dtype: np.dtype) -> None:
    """Raise DataError unless an array is uint8 [N, H, W, C] with C 1 or 3 and at least one image."""
    wanted = f"{path}: {IMAGES} must be uint8 [N, H, W, 3]"
    if dtype != np.uint8:
        how = f"{_AS_UINT8} where x is in [-1, 1], 255 * x inside where x is in [0, 1]"
        if dtype.kind in "iu":
            how = "images.astype(numpy.uint8) where all values are in 0 ... 255"
        raise DataError(f"{wanted}, got {dtype}; convert the images once: {how}")
    if len(shape) != 4:
        how = (
            "grey images need a last axis of 1: images[..., None]" if len(shape) == 3 else "stack the images"
        )
        raise DataError(f"{wanted}, got the shape {list(shape)}; {how}")
    if shape[0] == 0 or min(shape) == 0:
        raise DataError(f"{wanted}, got the shape {list(shape)} without any image; sample some")
    if shape[3] not in (1, 3):
        if shape[1] in (1, 3):
            how = "put the channels last: images.transpose(0, 2, 3, 1)"
        else:
            how = "flatten alpha onto a background first" if shape[3] == 4 else "C is 3, or 1 for grey"
        raise DataError(f"{wanted}, got the shape {list(shape)}; {how}")
    if fortran:
        raise DataError(f"{wanted} in C order, got Fortran order; save numpy.ascontiguousarray(images)")


def _labels(path: Path, names: list[str], num_images: int) -> torch.Tensor | None:
    """Return the labels int64 [N] of an npz file, None where it has none; raises DataError."""
    name = next((name for name in LABELS if name in names), None)
    if name is None:
        return None
    with np.load(path, allow_pickle=False) as arrays:
        stored = arrays[name]
    if stored.ndim == 1 and len(stored) != num_images:
        raise DataError(
            f"{path}: {name} has {len(stored):,} labels for {num_images:,} images; store one per "
            "image, or none"
        )
    labels = class_numbers(stored, num_images)
    if labels is None:
        raise DataError(
            f"{path}: {name} must be the class number of each of {num_images:,} images, whole numbers [N] or "
            f"[N, 1], or one-hot [N, K], got {stored.dtype} {list(stored.shape)}; store class numbers, or no "
            "labels"
        )
    return torch.from_numpy(labels)


def _class_names(path: Path, labels: torch.Tensor | None) -> tuple[str, ...] | None:
    """Return what the classes of an npz file are called, None where it does not say; raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = arrays.get(CLASS_NAMES)
    except DAMAGED as error:
        raise damaged(path, error) from error
    if stored is None or labels is None:
        return None
    if stored.ndim != 1 or stored.dtype.kind != "U" or len(set(stored.tolist())) < len(stored):
        raise DataError(
            f"{path}: {CLASS_NAMES} must be one text per class, each another, got {stored.dtype} "
            f"{list(stored.shape)}; store numpy.array([...]) of the names, or leave them out"
        )
    if int(labels.max()) >= len(stored):
        raise DataError(
            f"{path}: labels go up to {int(labels.max())}, and {CLASS_NAMES} has {len(stored)}; store one "
            "name per class, or leave them out"
        )
    return tuple(map(str, stored.tolist()))


def class_numbers(labels: np.ndarray, num_images: int) -> np.ndarray | None:
    """Return labels as class numbers, int64 [N], None where they are none, or not one per image.

    Taken are whole numbers of any type, [N] with any axes of length 1, and one-hot rows [N, K].
    """
    if labels.dtype.kind not in "biuf" or not np.isfinite(labels).all():
        return None
    if labels.size == num_images:
        flat = labels.reshape(num_images)
        whole = flat.dtype.kind != "b" and (flat == np.floor(flat)).all() and (abs(flat) < 2**53).all()
        return flat.astype(np.int64) if whole else None
    one_hot = labels.ndim == 2 and len(labels) == num_images and ((labels == 0) | (labels == 1)).all()
    if one_hot and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1).astype(np.int64)
    return None


def open_npz_images(path: Path) -> ImageCollection:
    """Open a single npz file; raises DataError."""
    collection = _collection(printable(str(path)), [open_npz(path)], [path])
    return replace(collection, class_names=_class_names(path, collection.labels))


def open_npz_shards(folder: Path, *, name: str) -> ImageCollection:
    """Open the shards `samples-00000.npz`, ... of a folder, in order; raises DataError for a missing one."""
    paths = sorted(folder.glob(SAMPLE_SHARDS))
    numbers = [int(found.group(1)) if (found := re.search(r"-(\d+)\.npz$", p.name)) else -1 for p in paths]
    missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
    if missing or -1 in numbers:
        which = listed(sample_shard(number) for number in missing) or "a number in a name"
        raise DataError(f"{folder}: {which} is missing among its shards; sample again, or copy all of them")
    return replace(_collection(name, [open_npz(path) for path in paths], paths), in_order=True)


def _collection(
    name: str, opened: list[tuple[NpzImages, torch.Tensor | None]], paths: list[Path]
) -> ImageCollection:
    (first, first_labels), labels = opened[0], [labels for _, labels in opened]
    for path, (images, own) in zip(paths, opened, strict=True):
        if images.shape[1:] != first.shape[1:]:
            raise DataError(
                f"{path} holds images of {list(images.shape[1:])}, {paths[0].name} of "
                f"{list(first.shape[1:])}; all must be of one size: sample again"
            )
        if (own is None) != (first_labels is None):
            raise DataError(
                f"{path} and {paths[0].name}: only one of them has labels; store them in all, or none"
            )
    joined = None if first_labels is None else torch.cat([own for own in labels if own is not None])
    total = sum(images.shape[0] for images, _ in opened)
    warning = "" if joined is None else check_labels(name, joined, total)
    _, height, width, channels = first.shape
    return ImageCollection(
        name=name,
        shards=tuple(shard for images, _ in opened for shard in images.shards()),
        height=height,
        width=width,
        channels=channels,
        labels=joined,
        warnings=[warning] if warning else [],
    )
