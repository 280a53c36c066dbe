"""Ways to run one case: in a process of its own (the rule) or in this one (debugging, tests)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from attnbench.errors import UserInputError
from attnbench.processes import ChildProcess, UnreadableReplyError
from attnbench.progress import StageProgress
from attnbench.results import Record, Result, environment, timestamp
from attnbench.specs import Case
from attnbench.stages.interrupts import GO_ON, Stopped, on_signal

Executor = Callable[[Case, Path, str, StageProgress], Result]  # case, store, device, progress

LAUNCHER_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
)  # fmt: skip
# glibc returns large tensors to the kernel at every free and faults them in again at every
# allocation; keeping them mapped makes CPU training faster. Not used where memory is measured.
KEEP_MEMORY_MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
STOP_LIMIT_S = 600.0  # without a sign of progress: a checkpoint of tens of gigabytes takes minutes
EXIT_LIMIT_S = 30.0  # after the result: a plugin's thread may never end
LOOK_S = 0.5  # how often these are looked at
_AFTER_A_DEATH = (
    "run the same command again to go on from what is saved; with --inline and PYTHONFAULTHANDLER=1 it shows "
    "where it dies"
)


def run_in_process(
    case: Case, store: Path, device: str, progress: StageProgress, *, processes: int = 1
) -> Result:
    """Run a case in a fresh child process, which starts `processes - 1` more to train with.

    A child that dies becomes a failed result. Ctrl-C and SIGTERM are handed to the child, which saves its
    training, and end in Stopped; a second one kills it, and so do STOP_LIMIT_S without a sign of progress.
    """
    request = {
        "case": case.model_dump(mode="json"),
        "root": str(store),
        "device": device,
        "processes": processes,
    }
    settings = {**KEEP_MEMORY_MAPPED, **os.environ}
    with ChildProcess("attnbench.stages.case", "the case's process", environment=settings) as child:
        talk = _Conversation(child, progress)
        with on_signal(talk.stop):
            child.send(json.dumps(request))
            talk.hear_out()
    if talk.signal is not None:
        raise Stopped(talk.signal, talk.stopped or f"{case.label}: {talk.killed or 'stopped'}; {GO_ON}")
    return talk.result or Result(
        case_id=case.id,
        suite=case.suite,
        label=case.label,
        axes=case.axes,
        status="failed",
        reason=talk.failure,
        case=case.model_dump(mode="json"),
        environment=environment(device),
        created=timestamp(),
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


class _Conversation:
    """What a case's process says until its end; tells it to stop when asked to."""

    def __init__(self, child: ChildProcess, progress: StageProgress) -> None:
        self.child, self.progress = child, progress
        self.result: Result | None = None
        self.failure = self.stopped = self.killed = ""
        self.signal: int | None = None
        self._sign_of_progress = time.monotonic()

    def stop(self, number: int) -> None:
        """Hand a first signal on as SIGTERM, so that the child can save its work; a second kills it."""
        if self.signal is None:
            self.child.signal(signal.SIGTERM)
            self._sign_of_progress = time.monotonic()
        else:
            self._kill("a second signal asked it to stop")
        self.signal = number

    def hear_out(self) -> None:
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


def take_over_launcher(processes: int) -> int | None:
    """Return how many processes to use where a launcher (torchrun) started several copies of this command.

    The first copy does all the work and starts as many processes itself as the launcher did; None says that
    this is another copy, with nothing to do. Without a launcher it is `processes`. Forgets the launcher's
    variables, which the processes to come would take for theirs. Raises UserInputError for copies on several
    machines.
    """
    copies, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if copies == 1:
        return processes
    if here != copies:
        raise UserInputError(
            f"a launcher has started {copies} copies of attnbench on several machines, {here} of them here; "
            "a case trains on one machine: start attnbench run SUITE --processes GPUS once on each, with one "
            "--runs folder on a file system that they share; they share out the cases"
        )
    if processes not in (1, copies):
        raise UserInputError(
            f"--processes is {processes}, but a launcher has started {copies} copies; leave --processes out"
        )
    first = os.environ.get("RANK", "0") == "0"
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    return copies if first else None


def run_inline(
    case: Case, store: Path, device: str, progress: StageProgress, *, processes: int = 1
) -> Result:
    """Run a case in this process, which starts `processes - 1` more to train with."""
    import torch

    from attnbench.stages.case import run_case
    from attnbench.storage.store import Workspace

    workspace = Workspace(root=store, device=torch.device(device), progress=progress, processes=processes)
    return run_case(case, workspace)
