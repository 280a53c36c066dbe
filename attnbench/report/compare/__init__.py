"""Runs and cases held against each other: differences, intervals, verdicts, gates."""

from attnbench.report.compare.comparing import Wanted, compare
from attnbench.report.compare.gates import parse_gates
from attnbench.report.compare.named import compare_named
from attnbench.report.compare.records import Equal, RunComparison
from attnbench.report.compare.tables import comparison_tables, gate_lines, notes

__all__ = [
    "Equal",
    "RunComparison",
    "Wanted",
    "compare",
    "compare_named",
    "comparison_tables",
    "gate_lines",
    "notes",
    "parse_gates",
]
