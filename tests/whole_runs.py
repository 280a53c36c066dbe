"""Whole runs of attnbench as processes: real ones, or forks that need no imports; and who outlives them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch

from attnbench import processes
from attnbench.report import content
from attnbench.running.executors.cradle import MODULE
from attnbench.storage.store import EVERY_STAGE

Start = Callable[[Sequence[str], Path], int]
"""Starts the command line with these words, its output in a file; returns its process id."""
LEFT_OVER_S = 20.0  # a child looks every 5 s whether its parent lives, where its input stays open without it
PR_SET_NAME = 15  # prctl(2): what /proc/PID/comm says
PR_SET_CHILD_SUBREAPER = 36  # prctl(2): orphans become children of this process
_of_others: set[int] = set()
"""Children that this process had before, such as multiprocessing's tracker of an earlier test."""
IMPORTED = (  # before the first fork
    "cli", "commands.suites", "running.runner", "profiling.worker", "report", "metrics.classifier",
    "evaluation.scorer", "stages.case", *(f"stages.{name}" for name in EVERY_STAGE),
)  # fmt: skip


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Make this process fit to be forked, and let orphans become its children."""
    from attnbench.plugins import registry

    for module in IMPORTED:
        importlib.import_module(f"attnbench.{module}")
    registry()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    libc, threads = ctypes.CDLL(None), torch.get_num_threads()
    torch.set_num_threads(1)  # sums over threads round differently, and a fork has no others
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _of_others.update(_children())
    try:
        yield
    finally:
        _of_others.clear()
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        torch.set_num_threads(threads)


def left_over() -> list[tuple[int, str]]:
    """Return the processes that outlive a run after the time they may take to notice; they are ended."""
    until = time.monotonic() + LEFT_OVER_S
    while _children():
        if time.monotonic() > until:
            found = [(pid, _command(pid)) for pid in _children()]
            for pid, _ in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while _children():
                time.sleep(0.05)
            return found
        time.sleep(0.05)
    return []


def _children() -> list[int]:
    """Return the living children of this process, and take leave of the dead ones."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [
        pid for path in lists for word in path.read_text().split() if (pid := int(word)) not in _of_others
    ]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return "(gone)"


def wait(pid: int, until: float) -> int | None:
    """Return a child's exit code, negative for a signal, or None where it lives at that time."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def start_cold(words: Sequence[str], log: Path) -> int:
    """Start the command as a user does, in a group of its own, and return its process id."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "attnbench.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=environment,
        )
    child.returncode = 0  # this module waits for it, not subprocess
    return child.pid


def start_warm(words: Sequence[str], log: Path) -> int:
    """Start the command as a fork of this process, in a group of its own, and return its process id."""

    def command() -> None:
        from attnbench.cli import main

        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["attnbench", *words]
        content._figures = lambda results: []  # drawing takes a third of the time, and keeps nothing
        processes.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _popen})  # type: ignore[assignment]
        main()

    return _fork(command)


def _popen(command: Sequence[str], **settings: Any) -> Any:
    """Start a child: what starts cases by a fork of this process, what starts measuring ones as it is."""
    measures = command[3] == processes.__name__ and command[-1] != MODULE
    return subprocess.Popen(command, **settings) if measures else Fork(command, **settings)


class Fork:
    """What attnbench uses of `subprocess.Popen` for `python -P -m MODULE ...`, without the imports."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: int,
        pass_fds: Sequence[int],
        env: Mapping[str, str],
        start_new_session: bool,
        **_: Any,
    ) -> None:
        assert command[1:3] == ["-P", "-m"]

        def serve() -> None:
            if start_new_session:
                os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdout, 1)
            os.dup2(stdout, 2)
            kept = {0, 1, 2, *pass_fds}
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor not in kept:
                    with contextlib.suppress(OSError):
                        os.close(descriptor)
            os.environ.clear()
            os.environ.update(env)
            name = command[3].rpartition(".")[2]
            ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)  # whom to strike
            sys.argv = list(command[3:])
            importlib.import_module(command[3]).main()

        self.pid = _fork(serve)
        self.returncode: int | None = None

    def wait(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _fork(work: Callable[[], None]) -> int:
    """Run `work` in a fork, where it ends as a program of its own would."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if not pid:
        _be_a_program(work)
    return pid


def _be_a_program(work: Callable[[], None]) -> NoReturn:
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # torch makes its pool anew behind a fork, and two threads at once cannot
    atexit._clear()  # what starts cases lets them end as programs do: this process's folders are not theirs
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
