"""New folders that appear whole or not at all, and what may be replaced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attnbench.errors import DataError, StorageError, UserInputError, cannot_read, cannot_write
from attnbench.storage.atomic import temporary_beside


@contextmanager
def new_folder(folder: Path, mark: str, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place when the block ends without an error.

    An existing folder must be empty, or, with `force`, hold the file `mark`: then it is one of ours.
    Raises UserInputError where the place is taken and StorageError where it cannot be written.
    """
    _check_free(folder, mark, force=force)
    temporary = temporary_beside(folder)
    try:
        with _storage_errors(folder):
            temporary.mkdir(parents=True)
        yield temporary
        _move(temporary, folder, mark, force=force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, folder: Path, mark: str, *, force: bool) -> None:
    """Put a folder in its place; one that is to be replaced is moved away first, whole, and then removed."""
    replaced = temporary_beside(folder)
    with _storage_errors(folder):
        if force and folder.is_dir():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except OSError:
            _check_free(folder, mark, force=False)  # somebody may have been faster: then it says so
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, also one told as text by safetensors, into a StorageError."""
    from attnbench.storage.tensor_files import os_errors

    with _storage_errors(folder), os_errors(folder):
        yield


def read_bytes(path: Path) -> bytes:
    """Return a file's content; raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error


def _check_free(folder: Path, mark: str, *, force: bool) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_dir() and (folder / mark).is_file():
        if force:
            return
        raise UserInputError(
            f"{folder} holds an export already; choose another --to, or replace it with --force"
        )
    if folder.exists():
        raise UserInputError(
            f"{folder} exists and is no export of attnbench (it has no {mark}); choose another --to, or "
            "remove it yourself"
        )


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{cannot_write(folder, error, 'choose another place with --to')}; nothing was left behind"
        ) from error
