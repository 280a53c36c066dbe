"""Each case in a process of its own, one after the other: the rule."""

from __future__ import annotations

import os
from pathlib import Path

from attnbench.processes import ChildProcess, ChildStartError, Nursery
from attnbench.progress import StageProgress
from attnbench.results import Result
from attnbench.running.executors.conversation import Conversation, Request
from attnbench.running.executors.inline import OneAtATime
from attnbench.running.executors.interface import Asked, Executor, Finished, Order
from attnbench.specs import Case
from attnbench.stages.interrupts import Stopped, on_signal

MODULE, NAME = "attnbench.stages.case", "the case's process"
# glibc returns large tensors to the kernel at every free and faults them in again at every
# allocation; keeping them mapped makes CPU training faster. Not used where memory is measured.
KEEP_MEMORY_MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


class Cradle:
    """Starts the processes of cases: forks of one that has imported everything, or else fresh ones.

    What must be in the environment when a process starts (the allocator's settings) is, for all of them. To
    enter it again changes nothing: whoever starts it early is not alone in using it.
    """

    def __init__(self) -> None:
        self._environment = {**KEEP_MEMORY_MAPPED, **os.environ}
        self._nursery: Nursery | None = None

    def __enter__(self) -> Cradle:
        if self._nursery is None:
            # in the session of this process: the terminal's Ctrl-C and Ctrl-Z are for its children, too
            self._nursery = Nursery(MODULE, self._environment, new_session=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def child(self, log: Path | None = None) -> ChildProcess:
        """Return a process that waits for a case to be asked of it."""
        if self._nursery is not None:
            try:
                return ChildProcess(MODULE, NAME, nursery=self._nursery, log=log)
            except ChildStartError:  # it was killed, say for want of memory: a fresh Python takes longer
                self._nursery = None
        return ChildProcess(MODULE, NAME, environment=self._environment, log=log)


class OneProcess(OneAtATime):
    """One process at a time, which handles signals itself while it is heard."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(run_in_process)
        self._asked, self._cradle = asked, asked.cradle or Cradle()

    def __enter__(self) -> OneProcess:
        self._cradle.__enter__()
        return self

    def call(self, order: Order, progress: StageProgress) -> Result:
        """Run one case in a process; raises Stopped."""
        return run_in_process(
            order.case,
            order.store,
            order.device,
            progress,
            processes=self._asked.processes,
            threads=self._asked.threads,
            cradle=self._cradle,
            log=order.log,
        )

    def close(self) -> None:
        """End what starts the processes."""
        self._cradle.__exit__()


def executor(asked: Asked) -> Executor:
    """Return what runs each case in a process, one after the other."""
    return OneProcess(asked)


def run_in_process(
    case: Case,
    store: Path,
    device: str,
    progress: StageProgress,
    *,
    processes: int = 1,
    threads: int = 0,
    cradle: Cradle | None = None,
    log: Path | None = None,
) -> Result:
    """Run a case in a child process, which starts `processes - 1` more to train with.

    A child that dies becomes a failed result. Ctrl-C and SIGTERM are handed to the child, which saves its
    training, and end in Stopped; a second one kills it, and so do STOP_LIMIT_S without a sign of progress.
    """
    request = Request(case=case, store=store, device=device, processes=processes, threads=threads)
    times: list[int] = []
    with (cradle or Cradle()).child(log) as child:
        talk = Conversation(child, request, progress)

        def stop(number: int) -> None:
            times.append(number)
            talk.stop(number, len(times))

        with on_signal(stop):
            outcome = talk.hear_out()
    if isinstance(outcome, Finished):
        return outcome.result
    raise Stopped(times[-1], outcome.message)
