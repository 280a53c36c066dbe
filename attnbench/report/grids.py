"""The sample grids of a run: PNG files that are checked before a report shows them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.report.tables import plain
from attnbench.results import Result

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 24  # signature, chunk length, "IHDR", width, height


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The sample grid of one case, or why there is none."""

    label: str
    series: int
    path: str = ""
    """Relative to the run directory."""
    data: bytes = b""
    width: int = 0
    height: int = 0
    problem: str = ""


def read_grids(run_dir: Path, results: Sequence[Result]) -> list[Grid]:
    """Read the grid of every case that names one; a file that cannot be shown says why."""
    return [
        _read(run_dir, plain(result.label), index, result.artefacts["grid"])
        for index, result in enumerate(results)
        if "grid" in result.artefacts
    ]


def _read(run_dir: Path, label: str, series: int, path: str) -> Grid:
    file = (run_dir / path).resolve()
    if not file.is_relative_to(run_dir.resolve()):
        return Grid(label=label, series=series, problem="its grid lies outside the run directory")
    try:
        data = file.read_bytes()
    except OSError as error:
        return Grid(label=label, series=series, problem=f"its grid cannot be read: {error.strerror}")
    if len(data) < _HEADER_BYTES or not data.startswith(SIGNATURE):
        return Grid(label=label, series=series, problem="its grid is not a PNG file")
    width, height = struct.unpack(">II", data[16:_HEADER_BYTES])
    return Grid(label=label, series=series, path=path, data=data, width=width, height=height)
