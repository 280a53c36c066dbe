"""Write a report's files into a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserInputError
from attnbench.report import markdown, page
from attnbench.report.content import gather
from attnbench.report.drawing import on_paper
from attnbench.report.sections import reproduce_command
from attnbench.results import Result, latest
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.names import REPORT_HTML, REPORT_MARKDOWN


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where a report was written."""

    markdown: Path
    html: Path


def write_report(
    run_dir: Path, results: Sequence[Result], title: str, question: str, command: str | None = None
) -> ReportPaths:
    """Write `report.md` (with `figures/`) and the self-contained `report.html` into `run_dir`.

    Of several results of one case the last counts. `command` is what makes the same results again; None: by
    the suite's name, which is all that results say of it. Raises UserInputError where there is nothing to
    report and StorageError where a file cannot be written.
    """
    if not results:
        raise UserInputError(f"no results to report in {run_dir}; run the suite first")
    results = latest(list(results))
    content = gather(run_dir, results, title, question, command or reproduce_command(results))
    files = {figure.name: f"figures/{figure.name}.svg" for figure in content.figures}
    paths = ReportPaths(markdown=run_dir / REPORT_MARKDOWN, html=run_dir / REPORT_HTML)
    for left_over in {*(run_dir / "figures").glob("*.svg")} - {run_dir / file for file in files.values()}:
        if left_over.name.startswith("figure-"):
            continue  # of `attnbench figures --to`
        with storage_errors(left_over):
            left_over.unlink()  # of a report of more cases, say
    for figure in content.figures:
        _write(run_dir / files[figure.name], on_paper(figure.svg))
    _write(paths.markdown, markdown.render(content, files))
    _write(paths.html, page.render(content))
    return paths


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, so that a killed run leaves the old report."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
