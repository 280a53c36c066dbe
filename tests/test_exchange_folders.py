"""Exported folders appear whole or not at all, whoever else writes at the same time."""

from pathlib import Path

import pytest

from attnbench.errors import UserInputError
from attnbench.exchange.folders import new_folder

MARK = "attnbench.json"


def put(folder: Path, text: str) -> None:
    """Write an export of one file."""
    folder.mkdir(exist_ok=True)
    (folder / MARK).write_text(text)


def export(folder: Path, text: str, *, force: bool, meanwhile=lambda: None) -> None:
    """Write an export; `meanwhile` is done when its files are there and it is not yet in its place."""
    with new_folder(folder, MARK, force=force) as mine:
        put(mine, text)
        meanwhile()


def test_the_slower_of_two_exports_is_refused(tmp_path):
    """A folder that came to be while this one was written stays as it is, and nothing is left behind."""
    folder = tmp_path / "model"
    with pytest.raises(UserInputError, match="holds an export already"):
        export(folder, "slow", force=False, meanwhile=lambda: put(folder, "fast"))
    assert (folder / MARK).read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_replaced_export_is_whole_until_the_new_one_is_there(tmp_path):
    """With force the old folder is taken away only by the new one; an error in between keeps it."""
    folder = tmp_path / "model"
    put(folder, "old")
    seen = []
    with pytest.raises(ZeroDivisionError):
        export(folder, "half", force=True, meanwhile=lambda: 1 / 0)
    export(folder, "new", force=True, meanwhile=lambda: seen.append((folder / MARK).read_text()))
    assert seen == ["old"]
    assert (folder / MARK).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
