"""How far a suite's cases have come, whatever runs them: from the store and a run's results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attnbench.results import Record, Result
from attnbench.running.executors.slurm_queue import WAITING
from attnbench.specs import Case
from attnbench.stages.case import finished_case
from attnbench.stages.profile import PROFILE_FAILED
from attnbench.storage.claims import claim_folder
from attnbench.storage.locks import is_held
from attnbench.storage.names import DONE, LOCK, SLURM, SLURM_TASKS
from attnbench.storage.store import stages_of

State = Literal["finished", "running", "failed", "skipped", "queued"]


@dataclass(frozen=True, kw_only=True)
class CaseStatus:
    """How far one case has come, and why it is not farther, or who is at it."""

    case: Case
    state: State
    detail: str = ""


class SubmittedTask(Record):
    """How Slurm says that the task of a case does."""

    task: str
    state: str
    reason: str = ""
    node: str = ""


def submitted_tasks(run_dir: Path) -> dict[str, SubmittedTask]:
    """Return the tasks that runs at work have at Slurm, by case id, as their processes wrote them last."""
    found: dict[str, SubmittedTask] = {}
    for path in sorted((run_dir / SLURM).glob(f"*/{SLURM_TASKS}")):
        if not is_held(path.parent):  # of a run that has ended, in whatever way
            continue
        try:
            written = json.loads(path.read_bytes()).items()
            found |= {case_id: SubmittedTask.model_validate(task) for case_id, task in written}
        except (OSError, ValueError, AttributeError):  # of another version
            continue
    return found


def statuses(
    cases: Sequence[Case],
    store: Path,
    results: Mapping[str, Result],
    tasks: Mapping[str, SubmittedTask] | None = None,
) -> list[CaseStatus]:
    """Return the status of every case; `results` are the last ones of a run, `tasks` its own, by case id.

    Running is what a process holds at this moment: the kernel lets go of a dead one's locks. What was begun
    and is held by nobody is queued, and so is what waits in an engine's queue.
    """
    return [_status(case, store, results.get(case.id), (tasks or {}).get(case.id)) for case in cases]


def _status(case: Case, store: Path, result: Result | None, task: SubmittedTask | None) -> CaseStatus:
    if finished_case(case, store) is not None:
        if result is not None and result.status == "failed" and result.reason.startswith(PROFILE_FAILED):
            return CaseStatus(case=case, state="failed", detail=result.reason)
        return CaseStatus(case=case, state="finished")
    left = [stage for stage in stages_of(case) if not (store / stage / case.key(stage) / DONE).exists()]
    holder = _holder(claim_folder(case, store))
    if holder and task is not None:  # the run holds the cases of all its tasks
        why = (
            f" ({task.reason})"
            if task.reason not in ("", "None")
            else f" on {task.node}"
            if task.node
            else ""
        )
        return CaseStatus(
            case=case,
            state="queued" if task.state in WAITING else "running",
            detail=f"Slurm task {task.task}: {task.state}{why}",
        )
    if holder:
        return CaseStatus(case=case, state="running", detail=f"{left[0] if left else 'evaluate'}: {holder}")
    if result is not None and result.status in ("failed", "skipped"):
        return CaseStatus(case=case, state=result.status, detail=result.reason)
    begun = (store / left[0] / case.key(left[0])).is_dir() if left else False
    return CaseStatus(case=case, state="queued", detail=f"{left[0]} was begun" if begun else "")


def _holder(folder: Path) -> str:
    """Return who holds a folder, as its lock says; empty where nobody does."""
    if not is_held(folder):
        return ""
    try:
        return (folder / LOCK).read_text(errors="replace") or "a process"
    except OSError:
        return "a process"
