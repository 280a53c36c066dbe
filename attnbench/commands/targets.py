"""Files and folders that a command writes at its end: that they can be written is known before it works."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attnbench.errors import UserInputError, cannot_write


def check_target(path: Path | None, option: str = "") -> None:
    """Raise UserInputError where a file cannot be written: its folder is missing, or it is one itself."""
    if path is None:
        return
    before, folder = f"{option}: " if option else "", path.absolute().parent
    if not folder.is_dir():
        raise UserInputError(f"{before}the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise UserInputError(f"{before}{path} is a folder; name a file in it, such as {path / 'name'}")
    try:
        if path.exists():
            path.open("ab").close()
        else:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise UserInputError(before + _cannot_write(path, error)) from error


def check_folder(path: Path | None, option: str = "") -> None:
    """Raise UserInputError where a folder cannot be made or written to; makes it where it is not there."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserInputError((f"{option}: " if option else "") + _cannot_write(path, error)) from error


def _cannot_write(path: Path, error: OSError) -> str:
    """Say why, without the name of the file that was tried."""
    return cannot_write(path, OSError(error.errno, error.strerror))
