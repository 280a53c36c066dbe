"""The images of one shard, decoded by several threads into one array."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from attnbench.data.decoding import decode
from attnbench.data.image_sources import Source
from attnbench.data.selection import LabelledFile
from attnbench.errors import DataError

FILES_PER_TASK = 16  # small images decode faster than a thread is told about them


def decode_all(
    source: Source, files: Sequence[LabelledFile], side: int, pool: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the readable images, uint8 [n, side, side, 3], and the reason for each file that is not.

    Pillow decodes and resizes outside the interpreter lock, so threads run in parallel. Memory is the
    shard itself and one file per thread.
    """
    images = np.empty((len(files), side, side, 3), dtype=np.uint8)

    def decode_some(start: int) -> dict[int, str]:
        faults = {}
        for index in range(start, min(start + FILES_PER_TASK, len(files))):
            try:
                images[index] = _decode(source, files[index], side)
            except DataError as error:
                faults[index] = str(error)
        return faults

    faults: dict[int, str] = {}
    for some in pool.map(decode_some, range(0, len(files), FILES_PER_TASK)):
        faults |= some
    if faults:
        images = np.delete(images, list(faults), axis=0)
    return images, {files[index].entry.name: reason for index, reason in faults.items()}


def _decode(source: Source, file: LabelledFile, side: int) -> np.ndarray:
    try:
        content = source.read(file.entry)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    if not content:
        raise DataError("an empty file")
    return decode(io.BytesIO(content), side)
