"""Reports: a suite's results as one Markdown file, one HTML page, and a table in the terminal."""

from attnbench.report.comparison import comparison_table
from attnbench.report.terminal import TerminalTable
from attnbench.report.writer import ReportPaths, write_report

__all__ = ["ReportPaths", "TerminalTable", "comparison_table", "write_report"]
