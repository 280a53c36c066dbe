"""Cases as an array of Slurm tasks, through submitit; what they say comes back through the run's folder.

A task runs the case's process beside it (`slurm_task.SlurmTask`), so that isolation, signals and logs are
those of every executor. A time limit and a preemption save the case and requeue the task. Where this process
ends without a signal (a lost connection), tasks go on: the same command finds what they have finished.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from attnbench.errors import AttnbenchError, StorageError
from attnbench.results import Result
from attnbench.running.executors import slurm_queue as queue
from attnbench.running.executors.asking import Asking, plain, source_digest
from attnbench.running.executors.cluster_shares import Share
from attnbench.running.executors.conversation import failed_result
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
from attnbench.running.executors.lending import new_key, write_key
from attnbench.running.executors.slurm_nodes import KEY
from attnbench.running.executors.slurm_queue import SlurmError, TaskState
from attnbench.running.executors.slurm_submit import script, share_of, submit
from attnbench.running.executors.slurm_task import ANSWER, PROGRESS, SAID, STOP, SlurmTask
from attnbench.stages.interrupts import GO_ON
from attnbench.storage.atomic import atomic_write, storage_errors
from attnbench.storage.locks import alone_in, is_held
from attnbench.storage.names import SLURM, SLURM_TASKS
from attnbench.storage.store import NOTICE

LOOK_S = 1.0  # how often it is looked what tasks have said
QUEUE_S = 5.0  # how often Slurm is asked how they do: a controller serves many
GONE_S = 30.0  # from leaving the queue until an answer must be seen: a shared folder may lag behind
RETRIES = 3  # of a case whose node died; every one goes on from the checkpoint
STOP_S = 60.0  # after a second signal
NOT_REPEATED: Mapping[str, str] = {
    "OUT_OF_MEMORY": "it took more memory than it was given; ask for more with --slurm mem=SIZE",
    "CANCELLED": "it was cancelled in Slurm",
    "TIMEOUT": "its time limit came and it was not requeued; ask for more with --time",
    "DEADLINE": "its deadline in Slurm has passed",
}
"""How a task may end that would end so again, or that somebody wanted."""


@dataclass(kw_only=True)
class _Task:
    """One attempt at a case."""

    order: Order
    tell: Tell
    folder: Path
    tries: int
    job: str = ""
    """As squeue calls it: `job`, or `job_index` of an array."""
    state: TaskState = field(default_factory=lambda: TaskState(state="PENDING"))
    heard: int = 0
    """Bytes of `said`."""
    progress: str = ""
    left_s: float | None = None
    """When it was first missing in the queue."""
    unheld: int = 0
    """Looks at which it ran and its lock was not seen."""


class Slurm(Executor):
    """Submits orders as arrays; a thread hears what becomes of them."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._code = asked, source_digest()
        self._share = Share(device="cpu", threads=1, cpus=1, gpus=0)
        self.at_once = asked.jobs or max(1, asked.num_cases)
        self.processes, self.elsewhere = asked.processes_here, asked.processes - asked.processes_here
        self._tasks: list[_Task] = []
        self._lock = threading.RLock()
        self._spool: Path | None = None
        self._signals: list[int] = []
        self._second_s = float("inf")
        self._is_stopping = self._sees_locks = False
        self._complaint = ""
        self._alone = contextlib.ExitStack()
        self._asked_s = float("-inf")
        self._is_closing = threading.Event()
        self._pump: threading.Thread | None = None

    def check(self, orders: Sequence[Order]) -> None:
        """Share out, and let sbatch say whether it would take a case; raises UserInputError."""
        if not orders:
            return
        self._share = share_of(self._asked)
        queue.would_take(script(self._asked, self._share, orders))
        spool = orders[0].log.parent.parent / SLURM / uuid4().hex[:12]
        with storage_errors(spool):
            spool.mkdir(parents=True)
            self._alone.enter_context(alone_in(spool, lambda text: None))  # `status` sees that it is at work
        self._spool = spool
        self._pump = threading.Thread(target=self._hear, daemon=True)
        self._pump.start()

    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        """Submit an array with a task for each case."""
        assert self._spool is not None
        self._submit(
            [_Task(order=o, tell=tell, folder=self._spool / uuid4().hex[:12], tries=1) for o in orders]
        )

    def stop(self, number: int) -> None:
        """Have the thread tell every task."""
        self._signals.append(number)
        if len(self._signals) > 1:
            self._second_s = min(self._second_s, time.monotonic())

    def close(self) -> None:
        """Cancel what is left."""
        if self._pump is not None:
            self._is_closing.set()
            self._pump.join()
            queue.cancel([task.job for task in self._tasks if task.job])
            self._pump = None
            self._alone.close()

    def _submit(self, tasks: Sequence[_Task]) -> None:
        """Hand tasks to sbatch; those that it refuses are answered as failed."""
        assert self._spool is not None
        several = self._asked.nodes > 1
        on_nodes = f", {self._asked.processes} processes on {self._asked.nodes} machines" if several else ""
        carried = [
            SlurmTask(
                Asking(
                    case=plain(task.order.case),
                    store=task.order.store,
                    log=task.order.log,
                    device=self._share.device,
                    processes=self._asked.processes,
                    nodes=self._asked.nodes,
                    threads=self._share.threads,
                    note=f"a task of Slurm{on_nodes}",
                    beside_others=True,
                ),
                task.folder,
                self._code,
            )
            for task in tasks
        ]
        with self._lock:
            try:
                for task in tasks:
                    task.folder.mkdir()
                    if several:
                        write_key(task.folder / KEY, new_key())
                jobs = submit(carried, self._asked, self._share, self._spool, [task.order for task in tasks])
            except Exception as error:  # noqa: BLE001 - sbatch, submitit or the disk: it costs these cases alone
                reason = f"it could not be submitted ({type(error).__name__}: {error})"
                for task in tasks:
                    task.tell(task.order, Finished(self._failed(task, reason)))
                return
            for task, job in zip(tasks, jobs, strict=True):
                task.job = job
            self._tasks += tasks
        self._write_states()

    def _hear(self) -> None:
        """Pass on what tasks say, and what becomes of them, until the executor is closed."""
        while not self._is_closing.wait(LOOK_S):
            if self._signals and not self._is_stopping:
                self._guarded(self._stop_tasks)
            if time.monotonic() - self._second_s > STOP_S:
                self._guarded(self._give_up)
            self._guarded(self._ask_the_queue)
            for task in tuple(self._tasks):
                self._guarded(self._hear_one, task)

    def _guarded(self, step: Callable[..., None], *task: _Task) -> None:
        """Take a step; a disk that is full or away is looked at again, any other error ends the task."""
        try:
            step(*task)
            self._complaint = ""
        except (OSError, AttnbenchError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                for one in (*task, *self._tasks)[:1]:
                    one.tell(
                        one.order, Progress(NOTICE, 0, 0, f"tasks cannot be heard ({error}); trying again")
                    )
        except Exception as error:  # noqa: BLE001 - nobody may wait for an answer that will not come
            for one in task:
                self._end(one, Finished(self._failed(one, f"{type(error).__name__}: {error}")))

    def _ask_the_queue(self) -> None:
        if not self._tasks or time.monotonic() - self._asked_s < QUEUE_S:
            return
        self._asked_s = time.monotonic()
        tasks = tuple(self._tasks)
        try:
            states = queue.in_queue(task.job.partition("_")[0] for task in tasks)
        except SlurmError as error:  # a controller that restarts: tasks go on
            tasks[0].tell(tasks[0].order, Progress(NOTICE, 0, 0, f"Slurm does not answer ({error}); waiting"))
            return
        changed = False
        for task in tasks:
            state = states.get(task.job)
            if state is None:
                task.left_s = time.monotonic() if task.left_s is None else task.left_s
            else:
                task.left_s = None
                changed |= state != task.state
                task.state = state
        if changed:
            self._write_states()

    def _hear_one(self, task: _Task) -> None:
        self._pass_on(task)
        try:
            answer = json.loads((task.folder / ANSWER).read_bytes())
        except FileNotFoundError:
            self._look_after(task)
            return
        self._pass_on(task)
        label = task.order.case.label
        if "result" in answer:
            self._end(task, Finished(Result.model_validate(answer["result"])))
        elif self._signals:
            ended = f"{label}: {answer.get('lost') or 'not begun'}; {GO_ON}"
            self._end(task, Interrupted(answer.get("interrupted") or ended))
        else:
            self._try_again(task, answer.get("lost") or "it was stopped by somebody else")

    def _pass_on(self, task: _Task) -> None:
        """Tell the last progress, and every notice and ended stage once."""
        with contextlib.suppress(FileNotFoundError), (task.folder / SAID).open("rb") as file:
            file.seek(task.heard)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                task.heard += len(line)
                if line.strip():
                    with contextlib.suppress(ValueError, TypeError):  # half a line of a node that died
                        task.tell(task.order, Progress(*json.loads(line)))
        with contextlib.suppress(FileNotFoundError):
            progress = (task.folder / PROGRESS).read_text()
            if progress != task.progress:
                task.progress = progress
                words = Progress(*json.loads(progress))
                if words.stage:
                    task.tell(task.order, words)

    def _look_after(self, task: _Task) -> None:
        """End, or try again, a task that will not answer any more."""
        if task.state.state == "RUNNING" and task.progress and task.left_s is None:
            self._sees_locks = self._sees_locks or is_held(task.folder)
            task.unheld = 0 if self._sees_locks else task.unheld + 1
            if task.unheld > GONE_S / LOOK_S:
                queue.cancel([task.job])
                where = task.folder.parent
                reason = (
                    f"this machine does not see the file locks (flock) that node {task.state.node} holds in "
                    f"{where}, so that nothing keeps two cases apart that write there; mount it with locks "
                    "(Lustre: -o flock; NFS: not -o nolock)"
                )
                self._end(task, Finished(self._failed(task, reason)))
            return
        if task.left_s is None or time.monotonic() - task.left_s < GONE_S:
            return
        ended = None
        with contextlib.suppress(SlurmError):
            ended = queue.how_it_ended(task.job)
        state = (ended.state if ended else "") or "gone from the queue"
        label = task.order.case.label
        if self._signals:
            self._end(task, Interrupted(f"{label}: its task ended ({state}); {GO_ON}"))
        elif state in NOT_REPEATED:
            self._end(task, Finished(self._failed(task, f"{NOT_REPEATED[state]} (task {task.job}, {state})")))
        else:
            self._try_again(task, f"it ended without an answer ({state})")

    def _try_again(self, task: _Task, how: str) -> None:
        """Submit a case once more, which goes on from its checkpoint, unless that was done often enough."""
        if task.tries > RETRIES:
            reason = f"its Slurm task was lost {task.tries} times, at last {task.job}: {how}"
            self._end(task, Finished(self._failed(task, reason)))
            return
        note = (
            f"{task.order.case.label}: Slurm task {task.job}: {how}; try {task.tries + 1} of {RETRIES + 1} "
            "goes on from its checkpoint"
        )
        task.tell(task.order, Progress(NOTICE, 0, 0, note))
        with self._lock:
            self._tasks.remove(task)
        again = task.folder.with_name(uuid4().hex[:12])
        self._submit([_Task(order=task.order, tell=task.tell, folder=again, tries=task.tries + 1)])

    def _stop_tasks(self) -> None:
        """Let nothing more begin, and have what runs save its work."""
        assert self._spool is not None
        self._is_stopping = True
        atomic_write(self._spool / STOP, b"")
        with self._lock:
            tasks = tuple(self._tasks)
        jobs = sorted({task.job.partition("_")[0] for task in tasks})
        with contextlib.suppress(SlurmError):
            states = queue.in_queue(jobs)
            for task in tasks:
                task.state = states.get(task.job, task.state)
        queue.cancel(jobs, "--state=PENDING")
        queue.cancel(jobs, "--signal=TERM")
        for task in tasks:
            if task.state.state in queue.WAITING and not (task.folder / PROGRESS).exists():
                self._end(task, Interrupted(f"{task.order.case.label}: not begun; {GO_ON}"))

    def _give_up(self) -> None:
        """End at once, after a second signal, what has not answered."""
        with self._lock:
            tasks = tuple(self._tasks)
        queue.cancel([task.job for task in tasks])
        for task in tasks:
            self._end(task, Interrupted(f"{task.order.case.label}: ended without an answer; {GO_ON}"))

    def _end(self, task: _Task, event: Event) -> None:
        with self._lock:
            if task not in self._tasks:
                return
            self._tasks.remove(task)
        task.tell(task.order, event)
        self._write_states()

    def _write_states(self) -> None:
        """Write down how tasks do, for `attnbench status`."""
        assert self._spool is not None
        with self._lock:
            told = {
                task.order.case.id: {
                    "task": task.job,
                    "state": task.state.state,
                    "reason": task.state.reason,
                    "node": task.state.node,
                }
                for task in self._tasks
            }
        with contextlib.suppress(OSError, StorageError):
            atomic_write(self._spool / SLURM_TASKS, json.dumps(told).encode())

    def _failed(self, task: _Task, reason: str) -> Result:
        return failed_result(
            task.order.case, f"{reason}; run the same command again", self._share.device, self._share.threads
        )


def executor(asked: Asked) -> Executor:
    """Return what runs cases as Slurm tasks; raises UserInputError where Slurm or submitit is not there."""
    queue.require_slurm()
    return Slurm(asked)
