"""Each case in a process of its own, one after the other: the rule."""

from __future__ import annotations

from pathlib import Path

from attnbench.progress import StageProgress
from attnbench.results import Result
from attnbench.running.executors.conversation import Conversation, Request
from attnbench.running.executors.cradle import Cradle
from attnbench.running.executors.inline import OneAtATime
from attnbench.running.executors.interface import Asked, Executor, Finished, Order
from attnbench.specs import Case
from attnbench.stages.interrupts import Stopped, on_signal
from attnbench.storage.store import Host


class OneProcess(OneAtATime):
    """One process at a time, which handles signals itself while it is heard."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(run_in_process)
        self._asked, self._cradle = asked, asked.cradle or Cradle()
        self.elsewhere = sum(host.processes for host in asked.hosts)
        self.processes = asked.processes - self.elsewhere

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
            hosts=self._asked.hosts,
            threads=self._asked.threads,
            signals=self.signals,
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
    hosts: tuple[Host, ...] = (),
    threads: int = 0,
    signals: list[int] | None = None,
    cradle: Cradle | None = None,
    log: Path | None = None,
) -> Result:
    """Run a case in a child process, which starts `processes - 1` more to train with, some on `hosts`.

    A child that dies becomes a failed result. Ctrl-C and SIGTERM are handed to the child, which saves its
    training, and end in Stopped; a second one kills it, and so do STOP_LIMIT_S without a sign of progress.
    `signals` gets them, also where the child was done just then.
    """
    request = Request(
        case=case, store=store, device=device, processes=processes, hosts=hosts, threads=threads
    )
    times = [] if signals is None else signals
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
