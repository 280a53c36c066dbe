"""Writes that are whole or absent, and a full disk as one clear error."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnbench.errors import StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


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
        temporary.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable place into one clear StorageError."""
    try:
        yield
    except OSError as error:
        what = "no space left" if error.errno in _FULL else str(error.strerror or error)
        advice = "permit it" if error.errno in _FORBIDDEN else "free some space"
        raise StorageError(
            f"cannot write {path}: {what}; {advice} or choose another place, then run the same command "
            "again: what is finished is kept"
        ) from error
