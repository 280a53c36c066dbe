"""Cells times stages: what is finished is read, what is missing is run, and a report is written.

Layout below the runs folder: `store/<stage>/<key>/` (content-addressed, shared by all suites) and
`<suite>/` with results.jsonl, report.md, report.html and the pictures they show.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.atomic import storage_errors
from attnbench.data.prepared import read_fitting_card
from attnbench.errors import DataError, StorageError
from attnbench.executors import Executor, run_in_process
from attnbench.plan import plan
from attnbench.profiling.session import check_device
from attnbench.report import ReportPaths, write_report
from attnbench.results import Result, append_result, latest, read_results
from attnbench.specs import Case, PreparedData, UserImages
from attnbench.stages.cell import finished_cell
from attnbench.stages.profile import SessionOutput, profile_cells
from attnbench.suite import Suite

CellProgress = Callable[[Case, str, int, int, str], None]  # case, stage, done, total, note


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What `run` did: one result per cell, where the report is, and how many cells were computed."""

    results: tuple[Result, ...]
    run_dir: Path
    report: ReportPaths
    computed: int

    @property
    def exit_code(self) -> int:
        """0 when every cell is fine, 1 when one failed or nothing was measured."""
        statuses = [result.status for result in self.results]
        return 1 if "failed" in statuses or "ok" not in statuses else 0


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Whom to tell: each cell's progress, each finished cell, and the profiling session."""

    progress: CellProgress = lambda case, stage, done, total, note: None
    finished: Callable[[Result, bool], None] = lambda result, cached: None
    profiling: Callable[[int, int, str], None] = lambda done, total, note: None


def default_device() -> str:
    """Return `cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run(
    suite: Suite,
    runs: Path,
    *,
    device: str | None = None,
    executor: Executor = run_in_process,
    listener: Listener | None = None,
) -> SuiteRun:
    """Run every cell that is not finished, profile all finished ones together, write the report.

    Raises DataError for a missing folder and StorageError for a full disk before anything runs.
    """
    listener = listener or Listener()
    device = device or default_device()
    check_device(device)
    runs = runs.absolute()
    run_dir, store = runs / suite.name, runs / "store"
    for folder in (run_dir, store):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    check_inputs(suite.cases)
    check_space(suite.cases, store)
    results: list[Result] = []
    computed = 0
    for case in suite.cases:
        result = finished_cell(case, store)
        cached = result is not None
        if result is None:
            computed += 1
            result = executor(case, store, device, _for(case, listener))
            append_result(run_dir / "results.jsonl", result)
        results.append(result)
        listener.finished(result, cached)
    session = profile_cells(
        [case for case, result in zip(suite.cases, results, strict=True) if result.status == "ok"],
        store,
        device,
        listener.profiling,
    )
    results = [_complete(result, session, store, run_dir) for result in results]
    _remember(run_dir / "results.jsonl", results)
    report = write_report(run_dir, results, title=suite.name, question=suite.question)
    return SuiteRun(results=tuple(results), run_dir=run_dir, report=report, computed=computed)


def _for(case: Case, listener: Listener) -> Callable[[str, int, int, str], None]:
    return lambda stage, done, total, note: listener.progress(case, stage, done, total, note)


def check_inputs(cases: Sequence[Case]) -> None:
    """Refuse a run whose files are not there, before the first cell is trained."""
    for case in cases:
        wanted = [("evaluate.weights", case.evaluate.weights), ("train.init_from", case.train.init_from)]
        if isinstance(case.data, UserImages):
            wanted.append(("data.path", case.data.path))
            if case.data.codec is not None:
                wanted.append(("data.codec.path", case.data.codec.path))
        for key, path in wanted:
            if path is not None and not path.exists():
                raise DataError(f"{key}: {path} does not exist; name yours with -o {key}=PATH")
    for data in {case.data for case in cases if isinstance(case.data, PreparedData)}:
        read_fitting_card(data)


def check_space(cases: Sequence[Case], store: Path) -> None:
    """Refuse a run that cannot fit on the disk."""
    needed = sum(cell.disk_bytes for cell in plan(cases, store))
    place = store
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"this run needs about {needed / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free; "
            "free some space or choose another place with --runs"
        )


def _complete(result: Result, session: SessionOutput, store: Path, run_dir: Path) -> Result:
    """Add a cell's cost and bring its pictures beside the report."""
    artefacts = {}
    for name, relative in result.artefacts.items():
        target = run_dir / "pictures" / f"{result.case_id}-{name}{Path(relative).suffix}"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store / relative, target)
        artefacts[name] = str(target.relative_to(run_dir))
    update: dict[str, Any] = {
        "measurements": [*result.measurements, *session.costs.get(result.case_id, [])],
        "artefacts": artefacts,
    }
    if result.case_id in session.failures:
        update |= {"status": "failed", "reason": session.failures[result.case_id]}
    return result.model_copy(update=update)


def _remember(path: Path, results: Sequence[Result]) -> None:
    """Append what results.jsonl does not say yet; it is append-only and the last line of a case counts."""
    known = {r.case_id: r for r in latest(read_results(path))} if path.exists() else {}
    for result in results:
        before = known.get(result.case_id)
        if before is None or before.model_copy(update={"created": result.created}) != result:
            append_result(path, result)
