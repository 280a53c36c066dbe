"""The report of a run's folder: the same whether `attnbench run` writes it or, later, `attnbench report`."""

from __future__ import annotations

from attnbench.report.sections import reproduce_command
from attnbench.report.writer import ReportPaths, write_report
from attnbench.storage.run_folders import Run


def write_run_report(run: Run) -> ReportPaths:
    """Write the report of a run into its folder; raises StorageError where a file cannot be written."""
    command = reproduce_command(run.results, run.record)
    return write_report(run.folder, run.results, title=run.suite, question=run.question, command=command)
