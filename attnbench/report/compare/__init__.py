"""Runs and cases held against each other: differences, intervals, verdicts, gates."""

from attnbench.report.compare.comparing import Wanted, compare
from attnbench.report.compare.records import RunComparison

__all__ = ["RunComparison", "Wanted", "compare"]
