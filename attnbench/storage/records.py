"""Records on the disk: whole or absent, with a checksum that is looked at whenever one is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attnbench.errors import StorageError, cannot_read
from attnbench.results import AnyRecord, Record, checked_record, with_checksum
from attnbench.storage.atomic import atomic_write


def write_record(path: Path, record: Record) -> None:
    """Write a record with its checksum, whole or not at all; raises StorageError."""
    atomic_write(path, with_checksum(record, _place(path)))


def read_record(
    path: Path, kind: type[AnyRecord], damaged: Callable[[Path], None] = lambda path: None
) -> AnyRecord | None:
    """Return what a record file holds, or None where it is absent or damaged: then the work is not done.

    `damaged` hears of one that is there and is not what was written. One of an earlier version has no
    checksum and is taken as it is. Raises StorageError where it cannot be read: then nobody knows.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(cannot_read(path, error, "choose another place")) from error
    try:
        return checked_record(data, kind, _place(path))
    except ValueError:
        damaged(path)
        return None


def _place(path: Path) -> str:
    """Name a record by its folder, whose name is a hash of what belongs there, and its file."""
    return f"{path.parent.name}/{path.name}"
