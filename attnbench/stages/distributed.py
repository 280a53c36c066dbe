"""Several processes that work on one stage together: starting them, joining them, and ending them.

The case's own process is rank 0. It starts the others as `python -m attnbench.stages.worker` and joins
them through a file (no port is taken), by gloo on the CPU and nccl on GPUs, one GPU each. A process
that loses its parent ends itself; a parent that loses a process ends the others and says which and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, Literal

import torch
import torch.distributed as dist

from attnbench.devices import device_of_rank
from attnbench.errors import AttnbenchError, UnsupportedError, UserInputError
from attnbench.specs import Case
from attnbench.storage.store import Workspace

SharedStage = Literal["train", "sample"]
READY = "ready"
PATIENCE = timedelta(minutes=30)  # the others wait while rank 0 writes a checkpoint of tens of gigabytes
DYING_S = 5.0  # a process whose peer has died notices within this time


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one stage and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean of a tensor over all processes."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def meet(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every process's picklable value, by rank."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


ALONE = World()


def check_processes(case: Case, workspace: Workspace, part: SharedStage) -> None:
    """Raise UserInputError where the processes cannot share a batch, UnsupportedError without the GPUs."""
    size, parts = workspace.processes, case.train.grad_accumulation * workspace.processes
    if part == "train" and case.train.batch_size % parts:
        raise UserInputError(
            f"train.batch_size {case.train.batch_size} is no multiple of {size} processes x "
            f"{case.train.grad_accumulation} micro-batches = {parts}; change one of the three"
        )
    if workspace.device.type == "cuda" and torch.cuda.device_count() < size:
        raise UnsupportedError(
            f"{size} processes need {size} GPUs, this machine shows {torch.cuda.device_count()}; "
            "lower --processes"
        )


@contextlib.contextmanager
def joined(world: World, store: Path, device: torch.device) -> Iterator[World]:
    """Join the processes that share the file `store` for the block; the CPU's cores are divided."""
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, threads // world.size))
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=store.as_uri(), rank=world.rank, world_size=world.size, timeout=PATIENCE
    )
    try:
        yield world
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


@contextlib.contextmanager
def together(case: Case, workspace: Workspace, part: SharedStage) -> Iterator[World]:
    """Start the other processes of a stage and be rank 0 of them; alone where one process is asked for."""
    if workspace.processes == 1:
        yield ALONE
        return
    check_processes(case, workspace, part)
    with tempfile.TemporaryDirectory(prefix="attnbench-") as folder:
        store = Path(folder) / "store"
        workers = [_Worker(case, workspace, part, rank, store) for rank in range(1, workspace.processes)]
        try:
            for worker in workers:
                worker.wait_until_ready()
            device = device_of_rank(workspace.device, 0, workspace.processes)
            with joined(World(rank=0, size=workspace.processes), store, device) as world:
                yield world
        except AttnbenchError:
            raise
        except RuntimeError as error:  # what a collective says when a peer is gone
            _blame(workers, error)
            raise
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """One process of rank 1 or higher; it lives as long as its standard input stays open."""

    def __init__(self, case: Case, workspace: Workspace, part: SharedStage, rank: int, store: Path) -> None:
        self.name = f"{part} process {rank} of {workspace.processes}"
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attnbench.stages.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            start_new_session=True,  # Ctrl-C is for rank 0, which decides what happens to the others
        )
        request = {
            "part": part,
            "case": case.model_dump(mode="json"),
            "root": str(workspace.root),
            "device": str(device_of_rank(workspace.device, rank, workspace.processes)),
            "rank": rank,
            "size": workspace.processes,
            "store": str(store),
            "threads": torch.get_num_threads(),
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died already: `wait_until_ready` tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def wait_until_ready(self) -> None:
        """Wait for the process's imports; raises AttnbenchError when it ends instead."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != READY:
            self._process.wait()
            raise AttnbenchError(self.last_words())

    def failed_within(self, seconds: float) -> bool:
        """Tell whether the process has failed, waiting so long for its end."""
        try:
            return self._process.wait(seconds) != 0
        except subprocess.TimeoutExpired:
            return False

    def last_words(self) -> str:
        """Return how the process ended and the end of what it wrote."""
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        said = " | ".join(lines[-3:]) or "(none)"
        return f"{self.name} {how}; its last words: {said}. Run again to go on from what is saved"

    def end(self) -> None:
        """Let the process end, or end it."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(DYING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def _blame(workers: list[_Worker], error: RuntimeError) -> None:
    """Raise AttnbenchError naming the process whose death is behind the error; return when all live."""
    until = time.monotonic() + DYING_S
    for worker in workers:
        if worker.failed_within(max(0.1, until - time.monotonic())):
            raise AttnbenchError(worker.last_words()) from error
