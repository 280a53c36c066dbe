"""One case in a process of its own: asking for it, hearing it out, and telling it to stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from attnbench.processes import ChildProcess, UnreadableReplyError
from attnbench.progress import StageProgress
from attnbench.results import Record, Result, environment, timestamp
from attnbench.running.executors.interface import Finished, Interrupted
from attnbench.specs import Case
from attnbench.stages.interrupts import GO_ON
from attnbench.storage.store import Host

STOP_LIMIT_S = 600.0  # without a sign of progress: a checkpoint of tens of gigabytes takes minutes
EXIT_LIMIT_S = 30.0  # after the result: a plugin's thread may never end
LOOK_S = 0.5  # how often these are looked at
_AFTER_A_DEATH = (
    "run the same command again to go on from what is saved; with --inline and PYTHONFAULTHANDLER=1 it shows "
    "where it dies"
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a case's process is asked for."""

    case: Case
    store: Path
    device: str
    processes: int = 1
    hosts: tuple[Host, ...] = ()
    """Other machines that lend some of the processes."""
    threads: int = 0
    """CPU threads; 0: as many as torch takes by itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set before a device is touched."""
    note: str = ""
    """What stands in the result's environment."""

    beside_others: bool = False
    """Whether other cases of the run may be computed at the same time."""

    def line(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(
            {
                "case": self.case.model_dump(mode="json"),
                "root": str(self.store),
                "device": self.device,
                "processes": self.processes,
                "hosts": [host.model_dump() for host in self.hosts],
                "threads": self.threads,
                "environment": dict(self.environment),
                "note": self.note,
                "beside_others": self.beside_others,
            }
        )


class _Progress(Record):
    progress: tuple[str, int, int, str]
    """Stage, done, total, note."""


class _Finished(Record):
    result: Result


class _Failing(Record):
    failing: str
    """Why no result will come, unless one comes."""


class _Stopped(Record):
    stopped: str
    """What was saved when the signal came."""


_EVENT: TypeAdapter[_Progress | _Finished | _Failing | _Stopped] = TypeAdapter(
    _Progress | _Finished | _Failing | _Stopped
)


class Conversation:
    """What a case's process says until its end; tells it to stop when asked to."""

    def __init__(self, child: ChildProcess, request: Request, progress: StageProgress) -> None:
        self.child, self.request, self.progress = child, request, progress
        self.result: Result | None = None
        self.failure = self.stopped = self.killed = ""
        self.signal: int | None = None
        self._times = 0
        self._sign_of_progress = time.monotonic()
        child.send(request.line())

    def stop(self, number: int, times: int) -> None:
        """Hand a first signal on as SIGTERM, so that the child can save its work; a second kills it.

        `times` says which of them this is: to be told of one twice changes nothing.
        """
        if times <= self._times:
            return
        if times == 1:
            self._sign_of_progress = time.monotonic()
            self.child.signal(signal.SIGTERM)
        else:
            self._kill("a second signal asked it to stop")
        self.signal, self._times = number, times

    def hear_out(self) -> Finished | Interrupted:
        """Hear the child to its end, and return how the case did.

        A child that dies is a failed result. One that was told to stop is killed where it gives no sign of
        progress for STOP_LIMIT_S.
        """
        self._hear()
        case = self.request.case
        if self.result is not None:  # it was done when the signal came
            return Finished(self.result)
        if self.signal is not None:
            return Interrupted(self.stopped or f"{case.label}: {self.killed or 'stopped'}; {GO_ON}")
        return Finished(failed_result(case, self.failure, self.request.device, self.request.threads))

    def _hear(self) -> None:
        """Hear the child until it has ended; kills one that does not stop or not end, or talks nonsense."""
        while True:
            try:
                event = self.child.receive(_EVENT, LOOK_S)
            except TimeoutError:
                self._kill_what_hangs()
                continue
            except UnreadableReplyError as error:
                self._kill("what it sends cannot be read")
                self.failure = f"{error}; its last words: {self.child.last_words()}"
                return
            if event is None:
                break
            self._sign_of_progress = time.monotonic()
            match event:
                case _Progress():
                    self.progress(*event.progress)
                case _Finished():
                    self.result = event.result
                case _Failing():
                    self.failure = event.failing
                case _Stopped():
                    self.stopped = event.stopped
        how = self.child.how_it_ended()
        self.failure = self.failure or self.stopped or f"{how}; {_AFTER_A_DEATH}"
        if self.killed:
            self.killed = how

    def _kill_what_hangs(self) -> None:
        waited = time.monotonic() - self._sign_of_progress
        if self.signal is not None and waited > STOP_LIMIT_S:
            self._kill(f"it did not stop within {STOP_LIMIT_S:g} s of its last sign of progress")
        elif self.result is not None and waited > EXIT_LIMIT_S:
            self._kill(f"it did not end within {EXIT_LIMIT_S:g} s of its result")

    def _kill(self, because: str) -> None:
        self.killed = because
        self.child.kill(because)


def failed_result(case: Case, reason: str, device: str, threads: int = 0) -> Result:
    """Return the result of a case that could not say how it failed."""
    return Result(
        case_id=case.id,
        suite=case.suite,
        label=case.label,
        axes=case.axes,
        status="failed",
        reason=reason,
        case=case.model_dump(mode="json"),
        environment=environment(device, threads),
        created=timestamp(),
    )
