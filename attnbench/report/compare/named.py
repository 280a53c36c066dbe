"""The whole of it for those who name runs and options: the command line and Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attnbench.report.compare.comparing import Wanted, compare
from attnbench.report.compare.equal import compare_equal
from attnbench.report.compare.reading import read_sides
from attnbench.report.compare.records import Equal, RunComparison


def compare_named(
    names: Sequence[str], runs: Path, wanted: Wanted, equal: Equal | None = None
) -> RunComparison:
    """Read runs (folders, names below `runs`, files) and compare them; raises UserInputError."""
    sides = read_sides(names, runs)
    return compare(sides, wanted) if equal is None else compare_equal(sides, wanted, equal)
