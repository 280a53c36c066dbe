"""The terminal itself, or the file in its place: how wide it is, and printing tables on it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from attnbench.console.listing import Listing
from attnbench.errors import StorageError, cannot_write
from attnbench.report import TerminalTable, comparison_table
from attnbench.report.tables import Table, plain
from attnbench.results import Result

PLAIN_WIDTH = 200  # columns when the output is not a terminal, unless COLUMNS says otherwise


def console(*, stderr: bool = False) -> Console:
    """Return a console as wide as its terminal, or wide enough for tables when nobody watches."""
    stream = sys.stderr if stderr else sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() and int(asked) else PLAIN_WIDTH
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else width)


def print_table(table: Table) -> None:
    """Print any table: numbers in a frame, a listing of words as lines that break between words."""
    console().print(table if isinstance(table, Listing) else TerminalTable(table))


def print_notice(text: str) -> None:
    """Print what a person should know before a command starts, beside its output: on stderr."""
    console(stderr=True).print(text, markup=False)


def print_comparison(results: Sequence[Result]) -> None:
    """Print the comparison table of a suite, and why cases are missing in it."""
    table = comparison_table(results)
    reasons = [
        f"{r.label}: {r.status}: {r.reason or 'no reason recorded'}" for r in results if r.status != "ok"
    ]
    print_table(replace(table, notes=(*table.notes, *map(plain, reasons))))


def write_json(path: Path, data: Any) -> None:
    """Write plain data as JSON; raises StorageError where that cannot be done."""
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(cannot_write(path, error)) from error
