"""What an engine that runs cases promises, and what it is told: the contract of every executor.

An executor decides only *where and when a process of a case runs*. It keeps nothing: what is finished lies in
the store, written by the stages themselves, and any executor reads what another one's cases have left there.
Which case comes next, who holds it, what is shared by cases and what a result becomes is the scheduler's
(`running/schedule.py`), the same for all.

An executor promises:

1. Every order that it was given is answered by exactly one `Finished` or `Interrupted`, told after all its
   `Progress`. A case that dies, in whatever way, is a `Finished` with a failed result and its reason: it
   never costs another case, and is never an exception out of `start`.
2. `tell` may be called from any thread, and inside `start`.
3. It computes by calling `attnbench.stages.case.run_case` (or its process, `python -m attnbench.stages.case`)
   once for each order, with the order's store, device, processes and threads. The thread count of an order is
   the one that the case computes with: its result's `environment.threads` says it, since trained weights
   depend on it. A failed attempt may be repeated (a lost node): a case goes on from its checkpoint.
4. After `stop` no case starts. Those under way save their training and are answered by `Interrupted` with
   what was saved (or `Finished`, where they were done just then); a second `stop` ends them at once, and they
   are answered all the same.
5. Leaving the `with` block, however, ends every process that it started, and its own.
6. What a case prints is kept in the order's `log`, as far as the executor can write there.
7. What no case of the run can be had without (a cluster that answers, nodes that hold a case and have its
   plugins, data and store) is asked for in `check`, before anything trains.

Cases that run at the same time never share a GPU unless the user asks for it, and the cores of a machine are
shared out among those that run there.

A fourth engine is one file in this folder with a function `executor(asked) -> Executor`, and one line, its
name in `EXECUTORS`. `tests/test_executors.py` is the conformance test: add the name there, too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from attnbench.results import Result
from attnbench.running.memory import MemoryNeed
from attnbench.specs import Case
from attnbench.storage.store import Host

if TYPE_CHECKING:
    from attnbench.running.executors.cradle import Cradle


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks of an executor, in the words of `attnbench run`."""

    jobs: int = 1
    """Cases at a time on this machine; 0: one for each core, or each GPU, as far as there are cases."""
    processes: int = 1
    """Processes that train one case together, on all machines."""
    nodes: int = 1
    """Machines of each case, of a cluster, which have as many of these processes each."""
    hosts: tuple[Host, ...] = ()
    """Other machines that lend some of these processes, to an executor of one case at a time."""
    threads: int = 0
    """CPU threads of a case; 0: OMP_NUM_THREADS, else the cores divided by the jobs."""
    share_gpus: bool = False
    """Whether cases may share a GPU."""
    device: str = "cpu"
    """As `devices.chosen_device` chose it: cpu, cuda or cuda:N."""
    num_cases: int = 1
    address: str = ""
    """Of a cluster to connect to; empty: one of this machine."""
    partition: str = ""
    """Of Slurm; empty: its default."""
    time: str = ""
    """A task's time limit, as sbatch takes it; empty: 12 hours. A case goes on in the next task."""
    slurm: tuple[str, ...] = ()
    """Further options of sbatch, NAME=VALUE."""
    cradle: Cradle | None = None
    """What starts the processes of cases on this machine, where it was begun before there was a suite."""

    @property
    def processes_here(self) -> int:
        """How many of a case's processes each of its nodes has."""
        return self.processes // self.nodes


@dataclass(frozen=True, kw_only=True)
class Order:
    """One case to run."""

    case: Case
    store: Path
    """Of all cases and executors: absolute, and seen from wherever the case runs."""
    device: str
    """As the run was asked, chosen on the machine of the run: cpu, cuda or cuda:N."""
    log: Path
    """Where what the case prints is to be kept; its folder may not be there yet."""
    time_s: float = 0.0
    """What the plan estimates for it."""
    memory: MemoryNeed | None = None
    """Likewise; None: nothing."""

    @property
    def memory_bytes(self) -> int:
        """What the machine is to have free for it; 0 where nothing is estimated."""
        return 0 if self.memory is None else self.memory.estimate


@dataclass(frozen=True)
class Progress:
    """How far a case has come: `stages` speak of it as `storage.store.Workspace.report` does."""

    stage: str
    """Or NOTICE or STAGE_ENDED of `storage.store`."""
    done: int
    total: int
    note: str


@dataclass(frozen=True)
class Finished:
    """A case has ended, well or not."""

    result: Result


@dataclass(frozen=True)
class Interrupted:
    """A case was told to stop and has; `message` says what it saved, and how to go on."""

    message: str


Event = Progress | Finished | Interrupted
Tell = Callable[[Order, Event], None]


class Executor(ABC):
    """Runs cases somewhere; to be used as a `with` block around all of a suite's cases."""

    processes: int = 1
    """That train one case together, where this executor runs it."""
    elsewhere: int = 0
    """Further ones, on other machines."""
    at_once: int = 1
    """How many orders may be unanswered at a time: the scheduler gives no more."""

    def check(self, orders: Sequence[Order]) -> None:  # noqa: B027 - most have nothing to look at
        """Refuse what cannot be run anywhere, before anything runs; raises UserInputError.

        Called once, inside the `with` block, with all cases that are not finished, before `at_once` counts.
        """

    def fits(self, order: Order, under_way: Sequence[Order]) -> bool:
        """Tell whether an order may be started beside others; asked of each before `start`.

        Where nothing is under way the answer is yes: what no machine holds is refused in `check`.
        """
        return True

    @abstractmethod
    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        """Begin some cases that are free to run, longest first; at most `at_once` with those under way.

        Returns once they are on their way, or (an executor of one at a time) when they have ended. An engine
        that hands several over together (an array of jobs) finds them in one call.
        """

    @abstractmethod
    def stop(self, number: int) -> None:
        """Tell what is under way to save and stop, for this signal; the second time, to end. Only that.

        Called inside a signal handler of the main thread: it must not wait.
        """

    def __enter__(self) -> Self:
        """Get ready: connect, start what starts cases; raises UserInputError for what cannot be had."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all that was started."""
        self.close()

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End all that was started; whoever is still under way is killed."""
