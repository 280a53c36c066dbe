"""What `attnbench claims` does: the paper's claims, tested on runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from attnbench import console
from attnbench.commands.tables import read_runs
from attnbench.errors import UnknownNameError, UserInputError
from attnbench.report.claims.checklist import checklist, tested
from attnbench.report.claims.shown import FORMATS, render
from attnbench.storage.atomic import atomic_write

_ENDINGS = {".md": "md", ".json": "json", ".txt": "text"}


def claims(names: Sequence[str], format: str, to: Path | None, runs: Path) -> int:
    """Test the claims on some runs, print or write them; return 1 where none could be tested at all.

    Raises UserInputError for an unknown format, a run named twice, and results that cannot be read.
    """
    if not format:
        format = "text" if to is None else _ENDINGS.get(to.suffix.lower(), "")
    if not format:
        raise UserInputError(f"--to {to}: its ending names no format ({', '.join(_ENDINGS)}); give --format")
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    found = checklist(read_runs(names, runs))
    text = render(found, format)
    if to is not None:
        atomic_write(to, text.encode())
        console.print_notice(f"claims: {to}")
    else:
        typer.echo(text, nl=False)
    if tested(found):
        return 0
    console.print_notice("no claim could be tested on these runs; each says above what it needs")
    return 1
