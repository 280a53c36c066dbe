"""Ways to run one case: in a process of its own (the rule) or in this one (debugging, tests)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from attnbench.errors import UserInputError
from attnbench.progress import StageProgress
from attnbench.results import Result, environment, timestamp
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


def run_in_process(
    case: Case, store: Path, device: str, progress: StageProgress, *, processes: int = 1
) -> Result:
    """Run a case in a fresh child process, which starts `processes - 1` more to train with.

    A child that dies becomes a failed result. Ctrl-C and SIGTERM are handed to the child, which saves its
    training, and end in Stopped; a second one kills it.
    """
    request = json.dumps(
        {
            "case": case.model_dump(mode="json"),
            "root": str(store),
            "device": device,
            "processes": processes,
        }
    )
    env = {**KEEP_MEMORY_MAPPED, **os.environ}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "attnbench.stages.case"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
        )
        stop = _StopChild(child)
        try:
            with on_signal(stop):
                result, stopped = _converse(child, request, progress)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
        if stop.number is not None:
            raise Stopped(stop.number, stopped or f"{case.label}: stopped; {GO_ON}")
        if result is not None:
            return result
        reason = f"{_how_it_ended(child.returncode)}; its last words: {_last_lines(log)}"
    return Result(
        case_id=case.id,
        suite=case.suite,
        label=case.label,
        axes=case.axes,
        status="failed",
        reason=reason,
        case=case.model_dump(mode="json"),
        environment=environment(device),
        created=timestamp(),
    )


def _converse(
    child: subprocess.Popen[str], request: str, progress: StageProgress
) -> tuple[Result | None, str]:
    """Return a child's result, None where it gave none, and what it said when a signal stopped it."""
    assert child.stdin is not None and child.stdout is not None  # noqa: PT018 - both were asked for
    try:
        child.stdin.write(request)
        child.stdin.close()
    except BrokenPipeError:
        return None, ""
    result, stopped = None, ""
    for line in child.stdout:
        event = json.loads(line)
        if "progress" in event:
            progress(*event["progress"])
        elif "stopped" in event:
            stopped = event["stopped"]
        else:
            result = Result.model_validate(event["result"])
    child.wait()
    return result, stopped


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the kernel's out-of-memory killer sends this)" if name == "SIGKILL" else ""
        return f"the case's process was killed by {name}{hint}"
    return f"the case's process ended with exit code {code}"


class _StopChild:
    """Hands a first signal to a child as SIGTERM, so that it can save its work; a second kills it."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.number: int | None = None

    def __call__(self, number: int) -> None:
        if self.number is None:
            self.child.send_signal(signal.SIGTERM)
        else:
            self.child.kill()
        self.number = number


def _lines(log: IO[str]) -> list[str]:
    log.seek(0)
    return [line.strip() for line in log.read().splitlines() if line.strip()]


def _last_lines(log: IO[str], count: int = 3) -> str:
    return " | ".join(_lines(log)[-count:]) or "(none)"


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
