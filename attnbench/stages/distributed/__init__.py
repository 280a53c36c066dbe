"""Several processes that work on one stage together: starting them, joining them, and ending them.

The case's own process is rank 0. It starts the others as `python -m attnbench.stages.worker` and joins
them through a file (no port is taken), by gloo on the CPU and nccl on GPUs, one GPU each. On other
machines it asks for processes (`machines.py`), and all are joined through a port of its own. A process
that loses its parent ends itself; a parent that loses a process ends the others, itself if need be, and
says which it lost and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch.distributed import TCPStore  # type: ignore[attr-defined] # it has no list of names

from attnbench.devices import device_of_rank
from attnbench.errors import AttnbenchError, UnsupportedError, UserInputError
from attnbench.processes import ChildProcess, UnreadableReplyError
from attnbench.results import Record
from attnbench.specs import Case
from attnbench.stages.distributed.machines import WORKER, DistantProcess
from attnbench.stages.distributed.talk import interface_setting
from attnbench.storage.store import Host, Workspace

SharedStage = Literal["train", "sample"]
PATIENCE = timedelta(minutes=30)  # the others wait while rank 0 writes a checkpoint of tens of gigabytes
DYING_S = 5.0  # a process whose peer has died gets this long to notice by itself
LEAVING_S = 30.0  # and one that has an error of its own, to leave the others, who may wait for it
LOOK_S = 0.3  # how often rank 0 looks after the others
WRITING = threading.Lock()  # held while rank 0 writes what shall not be lost to another's death


class Said(Record):
    """What a process of rank 1 or higher says to rank 0."""

    event: Literal["ready", "done", "failed"]
    error: str = ""
    traceback: str = ""
    """Where it lies."""


SAID = TypeAdapter(Said)


class LeftToFirstError(AttnbenchError):
    """What rank 0 meets as well, and is busy finding words for: no reason to end it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one stage and which of them this is."""

    rank: int = 0
    size: int = 1
    here: tuple[int, int] | None = None
    """Its number among the processes of its machine, and how many these are; None: all are on one."""

    @property
    def num_here(self) -> int:
        """How many of the processes are on this one's machine."""
        return self.size if self.here is None else self.here[1]

    def device_of(self, device: torch.device) -> torch.device:
        """Return this process's own device, on its machine."""
        return device_of_rank(device, self.rank if self.here is None else self.here[0], self.size)

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


def check_division(case: Case, size: int) -> None:
    """Raise UserInputError where a batch cannot be divided among so many processes."""
    parts = case.train.grad_accumulation * size
    if case.train.batch_size % parts:
        raise UserInputError(
            f"train.batch_size {case.train.batch_size} is no multiple of {size} processes x "
            f"{case.train.grad_accumulation} micro-batches = {parts}; change one of the three"
        )


def check_processes(case: Case, workspace: Workspace, part: SharedStage) -> None:
    """Raise UserInputError where the processes cannot share a batch, UnsupportedError without the GPUs."""
    here = processes_here(workspace)
    if part == "train":
        check_division(case, workspace.processes)
    if workspace.device.type == "cuda" and torch.cuda.device_count() < here:
        raise UnsupportedError(
            f"{here} processes need {here} GPUs, this machine shows {torch.cuda.device_count()}; "
            "lower --processes"
        )


def processes_here(workspace: Workspace) -> int:
    """Return how many of a case's processes are on this machine."""
    return workspace.processes - sum(host.processes for host in workspace.hosts)


@contextlib.contextmanager
def joined(world: World, rendezvous: str, device: torch.device) -> Iterator[World]:
    """Join the processes that share `rendezvous` for the block; the cores of a machine are divided.

    It is the URI of a file, or tcp://ADDRESS:PORT of a `TCPStore`.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, threads // world.num_here))
    backend = "nccl" if device.type == "cuda" else "gloo"
    place = urlsplit(rendezvous)
    where: dict[str, Any] = {"init_method": rendezvous}
    if place.scheme == "tcp":
        where = {"store": TCPStore(str(place.hostname), place.port or 0, timeout=PATIENCE)}
    dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=PATIENCE, **where)
    try:
        yield world
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)


@contextlib.contextmanager
def together(case: Case, workspace: Workspace, part: SharedStage) -> Iterator[World]:
    """Start the other processes of a stage and be rank 0 of them; alone where one process is asked for.

    Raises AttnbenchError for a process that fails, and ends this one where its main thread cannot raise it.
    """
    if workspace.processes == 1:
        yield ALONE
        return
    check_processes(case, workspace, part)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
        (first, _), *others = _worlds(workspace)
        started: dict[int, ChildProcess | DistantProcess] = {}
        # other machines first: the address that they see this one under is a setting for all processes
        for world, host in sorted(others, key=lambda one: one[1] is None):
            name = f"{part} process {world.rank} of {world.size}"
            started[world.rank] = process = _here(name) if host is None else _there(host, name)
            stack.callback(process.end, DYING_S)
        _store, rendezvous = _rendezvous(started.values(), folder)  # it serves as long as this frame lives
        workers = [
            _Worker(started[world.rank], case, workspace, part, world, rendezvous) for world, _ in others
        ]
        for worker in workers:
            worker.wait_until_ready()
        watch = stack.enter_context(_Watch(workers, workspace, folder))
        with watch.blaming():
            world = stack.enter_context(joined(first, rendezvous, first.device_of(workspace.device)))
        with watch.blaming():
            yield world


def _worlds(workspace: Workspace) -> list[tuple[World, Host | None]]:
    """Return every process's view by rank, and the other machine that it is on."""
    size = workspace.processes
    places = [(None, processes_here(workspace)), *((host, host.processes) for host in workspace.hosts)]
    seats = [(host, (number, count)) for host, count in places for number in range(count)]
    return [(World(rank=rank, size=size, here=here), host) for rank, (host, here) in enumerate(seats)]


def _here(name: str) -> ChildProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    # Ctrl-C is for rank 0, which decides what happens to the others
    return ChildProcess(WORKER, name, environment=environment, new_session=True)


def _there(host: Host, name: str) -> DistantProcess:
    process = DistantProcess(host, name)
    os.environ.update(interface_setting(process.here))
    return process


def _rendezvous(
    processes: Iterable[ChildProcess | DistantProcess], folder: Path
) -> tuple[TCPStore | None, str]:
    """Return where processes meet: a file, or the address that other machines see this one under."""
    address = next((process.here for process in processes if isinstance(process, DistantProcess)), None)
    if address is None:
        return None, (folder / "rendezvous").as_uri()
    store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    return store, f"tcp://{f'[{address}]' if ':' in address else address}:{store.port}"


class _Worker:
    """One process of rank 1 or higher."""

    def __init__(
        self,
        process: ChildProcess | DistantProcess,
        case: Case,
        workspace: Workspace,
        part: SharedStage,
        world: World,
        rendezvous: str,
    ) -> None:
        threads = torch.get_num_threads()
        self._process = process
        self._is_done, self._error, self._traceback = False, "", ""
        request = {
            "part": part,
            "case": case.model_dump(mode="json"),
            "root": str(workspace.root),
            "device": str(world.device_of(workspace.device)),
            "rank": world.rank,
            "size": world.size,
            "here": world.here,
            "rendezvous": rendezvous,
            "threads": threads,
        }
        if isinstance(process, DistantProcess):
            process.begin(json.dumps(request), threads)
        else:
            process.send(json.dumps(request))

    def wait_until_ready(self) -> None:
        """Wait for the process's imports; raises AttnbenchError when it ends instead."""
        self._hear(None)
        if self.has_failed():
            raise AttnbenchError(self.how_it_failed())

    def has_failed(self) -> bool:
        """Tell whether the process has said that it fails, or has ended before its part was done."""
        is_alive = self._process.is_alive  # before it is heard, or its last message might come in between
        with contextlib.suppress(TimeoutError):
            while self._hear(0 if is_alive else None):
                pass
        return bool(self._error) or not (self._is_done or is_alive)

    def _hear(self, timeout_s: float | None) -> bool:
        """Hear one message, or return False at the process's end."""
        try:
            said = self._process.receive(SAID, timeout_s)
        except UnreadableReplyError as error:
            self._error = str(error)
            return True
        if said is not None:
            self._is_done = self._is_done or said.event == "done"
            self._error, self._traceback = self._error or said.error, self._traceback or said.traceback
        return said is not None

    @property
    def guilt(self) -> tuple[bool, float]:
        """Sort key: a process that died without a word comes first, then the one that ended first."""
        return bool(self._error), self._process.ended_at

    def how_it_failed(self) -> str:
        """Return the process's error, or how it ended, with the end of what it wrote."""
        if self._error:
            where = self._traceback or f"its last words: {self._process.last_words()}"
            return f"{self._process.name} failed: {self._error}; {where}"
        return f"{self._process.how_it_ended()}. Run again to go on from what is saved"

    def says(self, error: str) -> bool:
        """Tell whether the process has failed with just this error."""
        return self._error == error

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill("the work that it took part in has failed")


class _Watch:
    """Watches over the processes of rank 1 and higher during the block: when one fails, this one ends, too.

    The main thread may wait for the dead in a collective, on a GPU for half an hour. It gets DYING_S to come
    out with an error, and LEAVING_S to leave the group then. After that the process ends: a collective that
    is called off instead would return numbers nobody has computed, and the training might save them.
    """

    def __init__(self, workers: list[_Worker], workspace: Workspace, folder: Path) -> None:
        self.workers, self.workspace, self.folder = workers, workspace, folder
        self._error = ""  # the main thread's own
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    @contextlib.contextmanager
    def blaming(self) -> Iterator[None]:
        """Turn a collective's error into the one of the process whose end is behind it."""
        try:
            yield
        except RuntimeError as error:
            guilty, own = self._wait_for_a_failure(), f"{type(error).__name__}: {error}"
            if guilty is None or guilty.says(own):  # the same in every process is no other one's fault
                self._error = own
                raise
            self._error = guilty.how_it_failed()
            raise AttnbenchError(self._error) from error
        except BaseException as error:
            self._error = f"{type(error).__name__}: {error}"
            raise

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_S):
            if self._error:
                self._end_this_process(self._error, LEAVING_S)
            elif (guilty := self._guilty()) is not None:
                self._end_this_process(guilty.how_it_failed(), DYING_S)

    def _end_this_process(self, reason: str, after_s: float) -> None:
        self.workspace.failing(reason)  # at once, since the backend may end this process as well
        self._is_over.wait(after_s)
        with WRITING:
            if not self._is_over.is_set():
                for worker in self.workers:
                    worker.kill()
                shutil.rmtree(self.folder, ignore_errors=True)
                os._exit(1)

    def _guilty(self) -> _Worker | None:
        """Return the process that has failed; where others failed for want of it, the one that was first."""
        if all(not worker.has_failed() for worker in self.workers):
            return None
        time.sleep(LOOK_S)  # who fails for want of another may be heard before the other's end is seen
        return min((worker for worker in self.workers if worker.has_failed()), key=lambda w: w.guilt)

    def _wait_for_a_failure(self) -> _Worker | None:
        until = time.monotonic() + DYING_S
        while (guilty := self._guilty()) is None and time.monotonic() < until:
            time.sleep(LOOK_S)
        return guilty
