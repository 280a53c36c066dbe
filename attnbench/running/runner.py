"""Cases times stages: what is finished is read, what is missing is run, and a report is written.

Layout below the runs folder: `store/<stage>/<key>/` (content-addressed, shared by all suites) and
`<suite>/` with results.jsonl, report.md, report.html and the pictures they show. Runs that share these
folders wait for each other: for one stage, for a profiling session, for the lines of a result.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.devices import chosen_device
from attnbench.errors import DataError, StorageError, UserInputError, cannot_read
from attnbench.report import ReportPaths
from attnbench.results import Result, append_result, latest, read_results
from attnbench.running.executors import make_executor
from attnbench.running.executors.inline import OneAtATime, RunCase
from attnbench.running.executors.interface import Asked, Executor
from attnbench.running.kept_report import code_state, write_report_where_needed
from attnbench.running.listener import Listener, saying_once
from attnbench.running.needs import refusals, source_of, taken_by_another
from attnbench.running.plan import PlannedCase, plan, warnings
from attnbench.running.schedule import Place, run_cases
from attnbench.specs import Case
from attnbench.stages.case import finished_case
from attnbench.stages.profile import SessionOutput, profile_cases
from attnbench.storage.atomic import atomic_write, remove_unfinished, storage_errors
from attnbench.storage.hashing import file_sha256
from attnbench.storage.locks import alone_in, beside_others
from attnbench.storage.names import DONE, PICTURES, RESULTS, STORE
from attnbench.storage.run_folders import RunRecord, set_damaged_aside, write_run_record
from attnbench.storage.store import read_output
from attnbench.suite.loading import Suite

_CODE = code_state()  # of what was imported


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What `run` did: one result per case, where the report is, and how many cases were computed."""

    results: tuple[Result, ...]
    run_dir: Path
    report: ReportPaths
    computed: int

    @property
    def exit_code(self) -> int:
        """0 when every case is fine, 1 when one failed or nothing was measured."""
        statuses = [result.status for result in self.results]
        return 1 if "failed" in statuses or "ok" not in statuses else 0


def run(
    suite: Suite,
    runs: Path,
    *,
    device: str | None = None,
    executor: Executor | RunCase | None = None,
    listener: Listener | None = None,
) -> SuiteRun:
    """Run every case that is not finished, profile all finished ones together, write the report.

    `executor` says where cases run: one after the other, each in a process of its own, unless it is given. A
    function that runs one case is one, too: one at a time, in this process.
    Raises DataError for a missing folder and StorageError for a full disk before anything runs.
    """
    listener = saying_once(listener or Listener())
    asked, device = device or "auto", chosen_device(device)
    if executor is None:
        executor = make_executor("process", Asked(device=device))
    elif not isinstance(executor, Executor):
        executor = OneAtATime(executor)
    runs = runs.absolute()
    run_dir, store = runs / suite.name, runs / STORE
    for folder in (run_dir, store):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with beside_others(store, listener.notice):  # `attnbench store prune` leaves it alone meanwhile
        check_inputs(suite.cases)
        if taken := taken_by_another(suite, run_dir):
            raise UserInputError(taken)
        planned = plan(
            suite.cases, store, device=device, processes=executor.processes, elsewhere=executor.elsewhere
        )
        check_space(planned, store)
        for warning in warnings(suite, store):
            listener.notice(warning)
        times_s = {one.case.id: one.time_s for one in planned}
        memory = {one.case.id: one.memory for one in planned}
        place = Place(store=store, run_dir=run_dir, device=device)
        results, computed = run_cases(suite.cases, place, executor, listener, times_s, memory)
        # what failed here another run may have finished since
        results = [
            result if result.status == "ok" else finished_case(case, store) or result
            for case, result in zip(suite.cases, results, strict=True)
        ]
        fine = [case for case, result in zip(suite.cases, results, strict=True) if result.status == "ok"]
        session = profile_cases(fine, store, device, listener.profiling, listener.notice)
        with alone_in(run_dir, listener.notice):
            for folder in (run_dir, run_dir / PICTURES):
                remove_unfinished(folder)
            if damaged := set_damaged_aside(run_dir):
                listener.notice(damaged)
            results = [_complete(result, session, store, run_dir, listener.notice) for result in results]
            for result in results:
                if result.case_id in session.failures:  # it was said to be fine when its stages were
                    listener.notice(f"{result.label}: {result.status}: {result.reason}")
            _remember(run_dir / RESULTS, results)
            write_run_record(run_dir, _record_of(suite, asked))
            report = write_report_where_needed(run_dir, runs, _CODE)
    return SuiteRun(results=tuple(results), run_dir=run_dir, report=report, computed=computed)


def _record_of(suite: Suite, device: str) -> RunRecord:
    return RunRecord(
        suite=suite.name,
        question=suite.question,
        source=source_of(suite),
        overrides=suite.overrides,
        seeds=suite.seeds,
        chosen=suite.chosen,
        device=device,
        case_ids=tuple(case.id for case in suite.cases),
    )


def check_inputs(cases: Sequence[Case]) -> None:
    """Refuse a run whose files are not there, naming all of them, before the first case is trained."""
    missing = list(refusals(cases))
    if len(missing) == 1:
        raise DataError(missing[0])
    if missing:
        raise DataError("\n  ".join([f"{len(missing)} things are missing:", *missing]))


def check_space(planned: Sequence[PlannedCase], store: Path) -> None:
    """Refuse a run that cannot fit on the disk."""
    needed = sum(one.disk_bytes for one in planned)
    place = store
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise StorageError(
            f"this run needs about {needed / 2**30:.1f} GiB and {place} has {free / 2**30:.1f} GiB free; "
            "free some space or choose another place with --runs"
        )


def _complete(
    result: Result, session: SessionOutput, store: Path, run_dir: Path, notice: Callable[[str], None]
) -> Result:
    """Add a case's cost and bring its pictures beside the report.

    A picture that the store has lost is told, here and in the report; the case's numbers do not depend on it.
    """
    artefacts = {}
    for name, relative in result.artefacts.items():
        target = run_dir / PICTURES / f"{result.case_id}-{name}{Path(relative).suffix}"
        output = read_output((store / relative).parent)
        expected = output.artefact_sha256.get(name, "") if output is not None else ""
        if not target.exists() or (expected and file_sha256(target) != expected):
            _bring(store / relative, expected, target, result.label, notice)
        artefacts[name] = str(target.relative_to(run_dir))
    update: dict[str, Any] = {
        "measurements": [*result.measurements, *session.costs.get(result.case_id, [])],
        "artefacts": artefacts,
    }
    if result.case_id in session.failures:
        update |= {"status": "failed", "reason": session.failures[result.case_id]}
    return result.model_copy(update=update)


def _bring(picture: Path, expected: str, target: Path, label: str, notice: Callable[[str], None]) -> None:
    """Copy a picture with the SHA-256 `expected`, if known, out of the store, unless it cannot be read.

    Raises StorageError.
    """
    again = f"remove {picture.parent / DONE} and run the same command again to have it drawn anew"
    try:
        content = picture.read_bytes()
    except OSError as error:
        notice(f"{label} goes without its picture: {cannot_read(picture, error, again)}")
        return
    if expected and hashlib.sha256(content).hexdigest() != expected:
        notice(f"{label} goes without its picture: {picture} was damaged; {again}")
        return
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, content)  # half a picture would be taken for a whole one


def _remember(path: Path, results: Sequence[Result]) -> None:
    """Append what results.jsonl does not say yet; it is append-only and the last line of a case counts."""
    known = {r.case_id: r for r in latest(read_results(path))} if path.exists() else {}
    for result in results:
        before = known.get(result.case_id)
        if before is None or before.model_copy(update={"created": result.created}) != result:
            append_result(path, result)
