"""Cases one after the other in this process: for debugging, tests, and whatever runs a case by a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from attnbench.errors import UserInputError
from attnbench.progress import StageProgress
from attnbench.results import Result
from attnbench.running.executors.interface import (
    Asked,
    Executor,
    Finished,
    Interrupted,
    Order,
    Progress,
    Tell,
)
from attnbench.running.memory import check_holds, total_bytes
from attnbench.specs import Case
from attnbench.stages.interrupts import GO_ON, Stopped
from attnbench.storage.store import Host

RunCase = Callable[[Case, Path, str, StageProgress], Result]
"""Runs one case: case, store, device, progress. Raises Stopped where it was told to stop."""


class OneAtATime(Executor):
    """Runs each case by a call of a function in the calling thread."""

    def __init__(self, run_case: RunCase) -> None:
        self._run_case, self._label = run_case, ""
        self.signals: list[int] = []
        """Those that a case was told of while it ran, where it handles them itself."""

    def check(self, orders: Sequence[Order]) -> None:
        """Refuse what this machine cannot hold; raises UserInputError."""
        check_holds([(order.case, order.memory) for order in orders], total_bytes(), "this machine")

    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        """Run the cases to their end."""
        for order in orders:
            self._label = order.case.label
            try:
                done = self.call(order, lambda *words, order=order: tell(order, Progress(*words)))
            except Stopped as stop:
                tell(order, Interrupted(stop.message))
                raise
            tell(order, Finished(done))
            if self.signals:  # the case was done, or had failed, just then: the next one must not start
                raise Stopped(self.signals[0], f"{self._label}: {done.status}; {GO_ON}")

    def call(self, order: Order, progress: StageProgress) -> Result:
        """Run one case; raises Stopped."""
        return self._run_case(order.case, order.store, order.device, progress)

    def stop(self, number: int) -> None:
        """Leave the case where it is: what can save its work handles signals itself while it does it."""
        raise Stopped(number, f"{self._label}: stopped; {GO_ON}")


def executor(asked: Asked) -> Executor:
    """Return what runs cases in this process; raises UserInputError for several at a time."""
    if asked.jobs > 1:
        raise UserInputError(
            f"--jobs is {asked.jobs}, and --inline runs cases one after the other in this process; leave one "
            "of the two out"
        )
    return OneAtATime(
        partial(run_inline, processes=asked.processes, hosts=asked.hosts, threads=asked.threads)
    )


def run_inline(
    case: Case,
    store: Path,
    device: str,
    progress: StageProgress,
    *,
    processes: int = 1,
    hosts: tuple[Host, ...] = (),
    threads: int = 0,
) -> Result:
    """Run a case in this process, which starts `processes - 1` more to train with, some on `hosts`.

    0 threads: as they are.
    """
    import torch

    from attnbench.stages.case import computing_with, run_case
    from attnbench.storage.store import Workspace

    workspace = Workspace(
        root=store, device=torch.device(device), progress=progress, processes=processes, hosts=hosts
    )
    with computing_with(threads):
        return run_case(case, workspace)
