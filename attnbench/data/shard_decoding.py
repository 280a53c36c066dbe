"""The images of one shard, decoded by several threads into one array."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from attnbench.data.decoding import Decoded, decode_and_tell
from attnbench.data.image_sources import Source
from attnbench.data.layout import printable
from attnbench.data.selection import LabelledFile
from attnbench.errors import DataError

FILES_PER_TASK = 16  # small images decode faster than a thread is told about them


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What a run of source files holds."""

    images: np.ndarray
    """The readable ones, uint8 [n, side, side, 3]."""
    unreadable: dict[str, str]
    """The reason for each file that is not."""
    changes: dict[str, int]
    """How many images lost or converted what of their files."""
    sha256: str
    """Of the hashes of the files' bytes, in order."""


def decode_all(
    source: Source, files: Sequence[LabelledFile], side: int, pool: ThreadPoolExecutor
) -> ShardContent:
    """Decode some files.

    Pillow decodes and resizes outside the interpreter lock, so threads run in parallel. Memory is the
    shard itself and one file per thread.
    """
    images = np.empty((len(files), side, side, 3), dtype=np.uint8)
    digests = [b""] * len(files)
    faults: dict[int, str] = {}
    changes: dict[int, tuple[str, ...]] = {}

    def decode_some(start: int) -> None:
        for index in range(start, min(start + FILES_PER_TASK, len(files))):
            try:
                content = _content(source, files[index])
                digests[index] = hashlib.sha256(content).digest()
                decoded = _decode(content, side)
                images[index], changes[index] = decoded.pixels, decoded.changes
            except DataError as error:
                faults[index] = str(error)

    for _ in pool.map(decode_some, range(0, len(files), FILES_PER_TASK)):
        pass
    if faults:
        images = np.delete(images, list(faults), axis=0)
    counts = Counter(change for index in sorted(changes) for change in changes[index])
    return ShardContent(
        images=images,
        unreadable={printable(files[index].entry.name): faults[index] for index in sorted(faults)},
        changes=dict(sorted(counts.items())),
        sha256=_joined(digests),
    )


def content_sha256(source: Source, files: Sequence[LabelledFile], pool: ThreadPoolExecutor) -> str:
    """Return what `decode_all` does as `sha256`, without decoding."""

    def digest(file: LabelledFile) -> bytes:
        try:
            return hashlib.sha256(_content(source, file)).digest()
        except DataError:
            return b""

    return _joined(pool.map(digest, files))


def _joined(digests: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(len(digest).to_bytes(1, "big") + digest)
    return whole.hexdigest()


def _content(source: Source, file: LabelledFile) -> bytes:
    try:
        return source.read(file.entry)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


def _decode(content: bytes, side: int) -> Decoded:
    if not content:
        raise DataError("an empty file")
    return decode_and_tell(io.BytesIO(content), side)
