"""Writes that are whole or absent, and a failed one as one clear error."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnbench.errors import StorageError, cannot_write


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all; raises StorageError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def temporary_beside(path: Path) -> Path:
    """Return a name that nobody else uses: two containers on one volume may have the same process id."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends without an error."""
    temporary = temporary_beside(path)
    try:
        with storage_errors(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # or the rename may survive a crash and the content not
            temporary.replace(path)
    finally:
        with suppress(OSError):  # what kept it from being written has been told
            temporary.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write in a folder; for who is alone in it."""
    for left_over in folder.glob(".*.part"):
        with suppress(OSError):
            left_over.unlink()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an error of the block, which writes `path`, into one StorageError: which file, why, what helps."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{cannot_write(path, error)}, then run the same command again: what is finished is kept"
        ) from error
