"""Any table of ours as a text to take elsewhere: a page, Markdown, CSV, LaTeX, JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attnbench.errors import UnknownNameError, UserInputError
from attnbench.report.formats import comma, latex, markdown, page, record
from attnbench.report.tables import Table

FORMATS: dict[str, Callable[[Table], str]] = {
    "html": page.render,
    "md": markdown.render,
    "csv": comma.render,
    "latex": latex.render,
    "json": record.render,
}
_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".csv": "csv", ".tex": "latex", ".json": "json"}


def render(table: Table, name: str) -> str:
    """Return a table in the format of that name; raises UnknownNameError with the nearest spelling."""
    return known_format(name)(table)


def known_format(name: str) -> Callable[[Table], str]:
    """Return the renderer of that name; raises UnknownNameError with the nearest spelling."""
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    return FORMATS[name]


def format_of(path: Path) -> str:
    """Return the format that a file's ending names; raises UserInputError where it names none."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UserInputError(
            f"--to {path}: its ending names no format ({', '.join(_SUFFIXES)}); give --format, one of "
            f"{', '.join(FORMATS)}"
        )
    return _SUFFIXES[path.suffix.lower()]
