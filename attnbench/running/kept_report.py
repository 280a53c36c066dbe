"""The report of a run that is finished already: written again only where it would be another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from attnbench.report.run_report import write_run_report
from attnbench.report.writer import ReportPaths
from attnbench.storage.atomic import atomic_write
from attnbench.storage.hashing import file_sha256
from attnbench.storage.names import PICTURES, REPORT_HTML, REPORT_MARKDOWN, REPORT_STATE, RESULTS, RUN
from attnbench.storage.run_folders import read_run

PACKAGE = Path(__file__).parents[1]


def code_state() -> str:
    """Return a hash of all files of this attnbench, templates and tables too, and of what fills templates."""
    digest = hashlib.sha256(version("jinja2").encode())
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.relative_to(PACKAGE)}\0{file_sha256(path)}".encode())
    return digest.hexdigest()


def write_report_where_needed(run_dir: Path, runs: Path, code: str) -> ReportPaths:
    """Write the report of a run's folder as `attnbench report` does, unless that very report is there.

    It is there where neither what it is made of (results, run.json, pictures, the code) nor a file of it has
    changed since it was written. `code` is the `code_state` of when this process imported it: by a run's end
    other code may lie there. For who holds the folder; raises StorageError.
    """
    kept = run_dir / REPORT_STATE
    if kept.is_file() and kept.read_text(errors="replace") == _state(run_dir, code):
        return ReportPaths(markdown=run_dir / REPORT_MARKDOWN, html=run_dir / REPORT_HTML)
    paths = write_run_report(read_run(run_dir, runs))
    atomic_write(kept, _state(run_dir, code).encode())
    return paths


def _state(run_dir: Path, code: str) -> str:
    """Return a hash of the code, of what a report is made of, and of the report."""
    digest = hashlib.sha256(code.encode())
    for path in _files(run_dir):
        digest.update(f"\0{path.relative_to(run_dir)}\0{file_sha256(path)}".encode())
    return digest.hexdigest()


def _files(run_dir: Path) -> Iterator[Path]:
    for name in (RESULTS, RUN, REPORT_MARKDOWN, REPORT_HTML):
        if (run_dir / name).is_file():
            yield run_dir / name
    for folder in (PICTURES, "figures"):
        yield from sorted(path for path in (run_dir / folder).glob("*") if path.is_file())
