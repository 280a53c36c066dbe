"""The SHA-256 of a file, read once per process."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from attnbench.errors import DataError, cannot_read


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits; a file that has not changed is read once.

    Raises DataError where it cannot be read.
    """
    try:
        state = path.stat()
        return _sha256(path.absolute(), state.st_ino, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, inode: int, mtime_ns: int, size: int) -> str:
    """Read the whole file; its state is part of the key, so that a changed or replaced one is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
