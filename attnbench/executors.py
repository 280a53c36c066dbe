"""Ways to run one cell: in a process of its own (the rule) or in this one (debugging, tests)."""

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

from attnbench.results import Result, environment, timestamp
from attnbench.specs import Case

Progress = Callable[[str, int, int, str], None]  # stage, done, total, note
Executor = Callable[[Case, Path, str, Progress], Result]  # case, store, device, progress

# glibc returns large tensors to the kernel at every free and faults them in again at every
# allocation; keeping them mapped makes CPU training faster. Not used where memory is measured.
KEEP_MEMORY_MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


def run_in_process(case: Case, store: Path, device: str, progress: Progress) -> Result:
    """Run a cell in a fresh child process; a child that dies becomes a failed result."""
    request = json.dumps({"case": case.model_dump(mode="json"), "root": str(store), "device": device})
    env = {**KEEP_MEMORY_MAPPED, **os.environ}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "attnbench.stages.cell"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
        )
        try:
            result = _converse(child, request, progress)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
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


def _converse(child: subprocess.Popen[str], request: str, progress: Progress) -> Result | None:
    assert child.stdin is not None and child.stdout is not None  # noqa: PT018 - both were asked for
    try:
        child.stdin.write(request)
        child.stdin.close()
    except BrokenPipeError:
        return None
    result = None
    for line in child.stdout:
        event = json.loads(line)
        if "progress" in event:
            progress(*event["progress"])
        else:
            result = Result.model_validate(event["result"])
    child.wait()
    return result


def _how_it_ended(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the kernel's out-of-memory killer sends this)" if name == "SIGKILL" else ""
        return f"the cell's process was killed by {name}{hint}"
    return f"the cell's process ended with exit code {code}"


def _last_lines(log: IO[str], count: int = 3) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "(none)"


def run_inline(case: Case, store: Path, device: str, progress: Progress) -> Result:
    """Run a cell in this process."""
    import torch

    from attnbench.stages.cell import run_cell
    from attnbench.stages.store import Workspace

    return run_cell(case, Workspace(root=store, device=torch.device(device), progress=progress))
