"""Several cases at a time on this machine, each in a process of its own with a share of cores and GPUs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attnbench.devices import available_cores
from attnbench.errors import UserInputError
from attnbench.running.executors.conversation import Conversation, Request, failed_result
from attnbench.running.executors.cradle import Cradle
from attnbench.running.executors.interface import (
    Asked,
    Event,
    Executor,
    Finished,
    Interrupted,
    Order,
    Progress,
    Tell,
)
from attnbench.running.memory import check_holds, free_bytes, total_bytes

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of the cases at work has for itself."""

    device: str
    threads: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


class Jobs(Executor):
    """A thread for each case at work, which hears its process out."""

    def __init__(self, asked: Asked) -> None:
        self._free = shares(asked)
        self.at_once = len(self._free)
        self._processes = self.processes = asked.processes
        self._memory: int | None = None
        """Bytes that are free for cases; None: unknown."""
        self._cradle = asked.cradle or Cradle()
        self._note = f"{self.at_once} cases at a time on this machine" if self.at_once > 1 else ""
        self._threads: list[threading.Thread] = []
        self._talks: set[Conversation] = set()
        self._signals: list[int] = []
        self._is_closing = False

    def __enter__(self) -> Jobs:
        self._cradle.__enter__()
        return self

    def check(self, orders: Sequence[Order]) -> None:
        """Refuse what this machine cannot hold, and look what memory it has free; raises UserInputError."""
        check_holds([(order.case, order.memory) for order in orders], total_bytes(), "this machine")
        self._memory = free_bytes()

    def fits(self, order: Order, under_way: Sequence[Order]) -> bool:
        """Keep apart what the memory that was free at first would not hold together."""
        if not under_way or self._memory is None:
            return True
        return sum(other.memory_bytes for other in (order, *under_way)) <= self._memory

    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        """Begin the cases, each on a free share."""
        for order in orders:
            work = threading.Thread(target=self._run, args=(order, self._free.pop(0), tell), daemon=True)
            self._threads.append(work)
            work.start()

    def stop(self, number: int) -> None:
        """Hand the signal to every process."""
        self._signals.append(number)
        for talk in tuple(self._talks):
            talk.stop(number, len(self._signals))

    def close(self) -> None:
        """Kill what is left, and end what starts processes."""
        self._is_closing = True
        for talk in tuple(self._talks):
            talk.child.kill("the run has ended")
        for thread in self._threads:
            thread.join()
        self._cradle.__exit__()

    def _run(self, order: Order, share: Share, tell: Tell) -> None:
        try:
            outcome: Event = self._hear_out(order, share, tell)
        except Exception as error:  # noqa: BLE001 - no process can be started, say: it costs this case alone
            reason = f"{type(error).__name__}: {error}; run the same command again"
            outcome = Finished(failed_result(order.case, reason, share.device, share.threads))
        finally:
            self._free.append(share)  # before it is told, so that another case may have it
        tell(order, outcome)

    def _hear_out(self, order: Order, share: Share, tell: Tell) -> Finished | Interrupted:
        request = Request(
            case=order.case,
            store=order.store,
            device=share.device,
            processes=self._processes,
            threads=share.threads,
            environment=share.environment,
            note=self._note,
            beside_others=self.at_once > 1,
        )
        with self._cradle.child(order.log) as child:
            talk = Conversation(child, request, lambda *words: tell(order, Progress(*words)))
            self._talks.add(talk)
            try:
                if self._is_closing:
                    child.kill("the run has ended")
                if self._signals:  # they came before this process was there
                    talk.stop(self._signals[-1], len(self._signals))
                return talk.hear_out()
            finally:
                self._talks.discard(talk)


def executor(asked: Asked) -> Executor:
    """Return what runs several cases at a time; raises UserInputError for more than the machine has."""
    return Jobs(asked)


def shares(asked: Asked) -> list[Share]:
    """Share out this machine's cores and GPUs, one share for each case at a time.

    Raises UserInputError where they do not suffice: cases that share a core or a GPU are slower than one
    after the other.
    """
    return _of_gpus(asked) if asked.device.startswith("cuda") else _of_cores(asked)


def _of_cores(asked: Asked) -> list[Share]:
    cores = available_cores()
    jobs = asked.jobs or max(1, min(cores // asked.processes, asked.num_cases))
    if jobs > 1 and jobs * asked.processes > cores:
        raise UserInputError(
            f"--jobs {jobs}{_times(asked.processes)} needs {jobs * asked.processes} CPU cores, this process "
            f"may use {cores}; choose --jobs {max(1, cores // asked.processes)} or fewer (0: as many as fit)"
        )
    return [Share(device=asked.device, threads=_threads(asked, jobs, cores)) for _ in range(jobs)]


def _of_gpus(asked: Asked) -> list[Share]:
    gpus, processes = _gpus(asked.device), asked.processes
    jobs = asked.jobs or max(1, min(len(gpus) // processes, asked.num_cases))
    if jobs == 1:
        return [Share(device=asked.device, threads=asked.threads)]
    if processes > len(gpus):
        raise UserInputError(
            f"--processes {processes} needs {processes} GPUs, one each, {asked.device} has {len(gpus)} here"
        )
    if jobs * processes > len(gpus) and not asked.share_gpus:
        raise UserInputError(
            f"--jobs {jobs}{_times(processes)} needs {jobs * processes} GPUs, {asked.device} has {len(gpus)} "
            f"here; choose --jobs {max(1, len(gpus) // processes)} or fewer (0: as many as fit), or "
            "--share-gpus, where several cases fit into one GPU's memory"
        )
    threads = _threads(asked, jobs, available_cores())
    found = []
    for first in range(0, jobs * processes, processes):
        mine = [gpus[(first + number) % len(gpus)] for number in range(processes)]
        found.append(Share(device="cuda", threads=threads, environment={VISIBLE: ",".join(mine)}))
    return found


def _gpus(device: str) -> list[str]:
    """Return the GPUs that a device stands for, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    listed = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    found = listed or [str(number) for number in range(torch.cuda.device_count())]
    _, _, number = device.partition(":")
    return [found[int(number)]] if number else found


def _threads(asked: Asked, jobs: int, cores: int) -> int:
    """Return the threads of each case; 0 for one that has the machine to itself: torch's own choice."""
    if asked.threads:
        if jobs > 1 and asked.threads * jobs > max(cores, jobs):
            raise UserInputError(
                f"--threads {asked.threads} x --jobs {jobs} needs {asked.threads * jobs} CPU cores, this "
                f"process may use {cores}; choose --threads {max(1, cores // jobs)} or fewer"
            )
        return asked.threads
    if jobs == 1:
        return 0
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else max(1, cores // jobs)


def _times(processes: int) -> str:
    return f" x --processes {processes}" if processes > 1 else ""
