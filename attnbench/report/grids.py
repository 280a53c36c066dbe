"""The sample grids of a run: PNG files that are checked before a report shows them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.report.tables import plain
from attnbench.results import Result

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLUMNS, GAP = 8, 2  # most images in a row and pixels between images, as the stage that writes grids has it
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
    columns: int = 0
    """Images in a row; 0 where the grid cannot be cut into its images."""
    rows: int = 0
    by_class: bool = False
    """Whether each row is a class."""
    problem: str = ""


def read_grids(run_dir: Path, results: Sequence[Result]) -> list[Grid]:
    """Read the grid of every case that names one; a file that cannot be shown says why."""
    return [
        _read(run_dir, result, index, result.artefacts["grid"])
        for index, result in enumerate(results)
        if "grid" in result.artefacts
    ]


def _read(run_dir: Path, result: Result, series: int, path: str) -> Grid:
    label = plain(result.label)
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
    by_class, columns, rows = _cut(result, width, height)
    return Grid(
        label=label, series=series, path=path, data=data, width=width, height=height,
        columns=columns, rows=rows, by_class=by_class,
    )  # fmt: skip


def _cut(result: Result, width: int, height: int) -> tuple[bool, int, int]:
    """Return whether rows are classes, images in a row and rows; no images where the sizes do not fit."""
    sample = result.case.get("sample", {})
    by_class = sample.get("labels", "balanced") == "balanced"
    per_class = sample.get("per_class")
    columns = min(COLUMNS, per_class) if by_class and isinstance(per_class, int) else COLUMNS
    side = (width - GAP) // columns if columns > 0 else 0
    if side <= GAP or (width - GAP) % columns or (height - GAP) % side:  # images are square
        return by_class, 0, 0
    return by_class, columns, (height - GAP) // side
