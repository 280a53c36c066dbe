"""Cases as tasks of a Ray cluster, each with its CPUs and GPUs; without an address on this machine alone.

A task starts the case's process beside its worker (`ray_node.run_order`), so that isolation, signals and logs
are those of every executor. What it says comes back through a mailbox, an actor beside the driver, and so do
signals to it: cancelling a task in Ray's way would not let it say what it saved.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from attnbench.results import Result
from attnbench.running.executors.asking import Asking, plain, source_digest
from attnbench.running.executors.cluster_shares import (
    Node,
    Share,
    asked_memory,
    cases_at_once,
    check_memory,
    share_of_each,
)
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
from attnbench.running.executors.ray_cluster import Cluster, require_ray
from attnbench.running.executors.ray_node import Mailbox, run_order
from attnbench.running.executors.ray_nodes import Group
from attnbench.stages.interrupts import GO_ON
from attnbench.storage.store import NOTICE

LOOK_S = 0.2  # how often it is looked what has become of tasks, and the mail is fetched
MAILBOX_S = 5.0  # until it answers
RETRIES = 3  # of a case whose worker or node died; every one goes on from the checkpoint
COUNT_S = 5.0  # how often the nodes are counted
STOP_S = 60.0  # after a second signal; who has not answered then never will: its node is lost


@dataclass(kw_only=True)
class _Task:
    """One attempt at a case."""

    order: Order
    tell: Tell
    key: str
    tries: int
    node: str = ""
    """Where it has begun, as Ray calls it."""
    begun: bool = False
    group: Group | None = None
    """Where it is on several nodes."""


class Ray(Executor):
    """Hands orders to a cluster; a thread hears what becomes of them."""

    def __init__(self, asked: Asked) -> None:
        self._asked, self._cluster = asked, Cluster(asked.address)
        self._share = Share(device="cpu", threads=1, cpus=1, gpus=0)
        self._mailbox: Any = None
        self._tasks: dict[Any, _Task] = {}
        """By the reference that Ray gives for it."""
        self._lock = threading.Lock()
        self._ended: list[str] = []
        self._signals: list[int] = []
        self._second_s = float("inf")
        self._is_closing = threading.Event()
        self._pump: threading.Thread | None = None
        self._able: list[Node] = []
        self.processes, self.elsewhere = asked.processes_here, asked.processes - asked.processes_here
        self._code = source_digest()
        self._fits, self._counted_s = 1, float("-inf")

    @property
    def at_once(self) -> int:  # type: ignore[override]
        """`--jobs`, or how many cases the nodes hold that are alive now; at least one."""
        if self._asked.jobs:
            return self._asked.jobs
        return max(1, self._fits)

    def check(self, orders: Sequence[Order]) -> None:
        """Connect, share out, and ask every node whether it has what the cases need; raises UserInputError.

        Where there is nothing to run there is no cluster, either.
        """
        if not orders:
            return
        self._cluster.connect()
        nodes = self._cluster.nodes()
        self._share = share_of_each(self._asked, nodes)
        self._able = able = [node for node in nodes if node.holds(self._share)]
        check_memory(orders, able, self._asked.nodes)
        self._cluster.check(able, [order.case for order in orders], orders[0].store)
        self._count(nodes)
        self._open_mailbox()
        self._pump = threading.Thread(target=self._hear, daemon=True)
        self._pump.start()

    def start(self, orders: Sequence[Order], tell: Tell) -> None:
        """Submit a task for each case."""
        for order in orders:
            self._submit(_Task(order=order, tell=tell, key=uuid4().hex, tries=1))

    def stop(self, number: int) -> None:
        """Have the thread tell every task."""
        self._signals.append(number)
        if len(self._signals) > 1:
            self._second_s = min(self._second_s, time.monotonic())

    def close(self) -> None:
        """End what is left, and the connection; a cluster that was started here, too."""
        if self._pump is not None:
            import ray

            self._is_closing.set()
            self._pump.join()
            for ref in self._tasks:
                ray.cancel(ref, force=True)
            ray.kill(self._mailbox)
            self._pump = None
        self._cluster.close()

    def _count(self, nodes: Sequence[Node]) -> None:
        self._counted_s = time.monotonic()
        self._fits = cases_at_once(self._share, nodes, self._asked.nodes)

    def _open_mailbox(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        # soft=True would be no affinity at all: Ray puts an actor that asks for no resources on any node
        here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = (
            ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Mailbox)
            .options(scheduling_strategy=here)
            .remote()
        )

    def _submit(self, task: _Task) -> None:
        import ray

        several, nodes = self._fits > 1 or self._asked.jobs > 1, self._asked.nodes
        on_nodes = f", {self._asked.processes} processes on {nodes} machines" if nodes > 1 else ""
        asking = Asking(
            case=plain(task.order.case),
            store=task.order.store,
            log=task.order.log,
            device=self._share.device,
            processes=self._asked.processes,
            nodes=nodes,
            threads=self._share.threads,
            note=f"a task of Ray{on_nodes}" + (", others beside it" if several else ""),
            beside_others=several,
        )
        memory = asked_memory(task.order.memory_bytes, self._able, nodes) or None
        # retries are made here, where they can be counted and told
        remote = ray.remote(
            num_cpus=self._share.cpus,
            num_gpus=self._share.gpus,
            memory=memory,
            max_retries=0,
        )(run_order)
        options: dict[str, Any] = {"name": task.order.case.label}
        more: tuple[Any, ...] = ()
        if nodes > 1:
            task.group = Group(self._share, memory, nodes)
            options |= {"scheduling_strategy": task.group.first}
            more = (self._code, task.group.others)
        with self._lock:
            ref = remote.options(**options).remote(
                asking.model_dump(mode="json"), task.key, self._mailbox, *more
            )
            self._tasks[ref] = task

    def _hear(self) -> None:
        """Pass on what tasks say, and what becomes of them, until the executor is closed."""
        while not self._is_closing.wait(0.0 if self._tasks else LOOK_S):
            try:
                self._hear_once()
            except Exception as error:  # noqa: BLE001 - nobody may wait for answers that will not come
                for ref in tuple(self._tasks):
                    task = self._forget(ref)
                    reason = f"Ray cannot be asked how it does ({type(error).__name__}: {error})"
                    task.tell(task.order, Finished(self._failed(task, reason)))

    def _look_at_nodes(self) -> None:
        """Count what the nodes hold, now and then; say so where that is nothing any more.

        Tasks of nodes that are no more are lost: Ray says so by itself once the worker's connection breaks,
        which for a node that is cut off takes seven minutes (its gRPC's keepalive, 300 s and 120 s).
        """
        if time.monotonic() - self._counted_s < COUNT_S:
            return
        nodes = self._cluster.nodes()
        self._count(nodes)
        alive = {"", *(node.id for node in nodes)}
        with self._lock:
            cut_off = [ref for ref, task in self._tasks.items() if task.node not in alive]
        for ref in self._unanswered(cut_off):
            task = self._forget(ref)
            event = self._lost(task, "its node is dead or cut off")
            if event is not None:
                task.tell(task.order, event)
        for task in tuple(self._tasks.values())[: 1 if self._fits == 0 else 0]:
            several = self._asked.nodes > 1
            none = f"no {self._asked.nodes} nodes of" if several else "no node of"
            note = (
                f"{none} the Ray cluster {'hold' if several else 'holds'} a case any more; waiting for one; "
                "Ctrl-C ends the waiting"
            )
            task.tell(task.order, Progress(NOTICE, 0, 0, note))

    @staticmethod
    def _unanswered(refs: Sequence[Any]) -> Sequence[Any]:
        """Return those that have no answer yet: a task may have ended well before its node went."""
        if not refs:
            return refs
        import ray

        _, waiting = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        return list(waiting)

    def _hear_once(self) -> None:
        import ray

        self._look_at_nodes()
        with self._lock:
            refs = list(self._tasks)
        if not refs:
            return
        ready, _ = ray.wait(refs, num_returns=1, timeout=LOOK_S)
        signals = list(self._signals)
        is_heard = self._fetch(signals)
        for ref in ready:
            self._answer(ref)
        if signals:
            self._give_up(is_heard)

    def _fetch(self, signals: list[int]) -> bool:
        """Fetch the mail, before a task's end is told: all of its progress comes before that.

        Returns whether the mailbox could be asked, and so lets nothing begin after these signals.
        """
        import ray

        try:
            begun, news = ray.get(self._mailbox.fetch.remote(signals, self._ended), timeout=MAILBOX_S)
        except ray.exceptions.RayError:  # slow, or being made anew: what cases said comes later, or is lost
            return False
        self._ended = []
        with self._lock:
            by_key = {task.key: task for task in self._tasks.values()}
        for key in begun.keys() & by_key.keys():
            by_key[key].begun, by_key[key].node = True, begun[key]
        for key in news.keys() & by_key.keys():
            for words in news[key]:
                by_key[key].tell(by_key[key].order, Progress(*words))
        return True

    def _answer(self, ref: Any) -> None:
        """Tell how a task has ended, or try it once more."""
        import ray

        task = self._forget(ref)
        label = task.order.case.label
        try:
            said = ray.get(ref)
        except ray.exceptions.TaskCancelledError as error:
            event = self._lost(task, str(error))
        except ray.exceptions.RayTaskError as error:  # our own code raised: it would again
            event = Finished(self._failed(task, f"{type(error.cause).__name__}: {error.cause}"))
        except ray.exceptions.RayError as error:
            event = self._lost(task, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        else:
            if "lost" in said:
                event = self._lost(task, said["lost"])
            elif "result" in said:
                event = Finished(Result.model_validate(said["result"]))
            elif self._signals:
                event = Interrupted(said["interrupted"] or f"{label}: not begun; {GO_ON}")
            else:  # its node is being taken back, which told the case's process, too
                event = self._lost(task, "the case was stopped by somebody else")
        if event is not None:
            task.tell(task.order, event)

    def _lost(self, task: _Task, how: str) -> Event | None:
        """Go on with a task that has ended without an answer, or say that it was one time too often."""
        label = task.order.case.label
        if self._signals:
            return Interrupted(f"{label}: its Ray worker is gone ({how}); {GO_ON}")
        if task.tries > RETRIES:
            return Finished(self._failed(task, f"its Ray task was lost {task.tries} times, at last: {how}"))
        note = (
            f"{label}: its Ray task was lost ({how}); try {task.tries + 1} of {RETRIES + 1} goes on from its "
            "checkpoint"
        )
        task.tell(task.order, Progress(NOTICE, 0, 0, note))
        try:
            self._submit(_Task(order=task.order, tell=task.tell, key=uuid4().hex, tries=task.tries + 1))
        except Exception as error:  # noqa: BLE001 - a cluster that restarts, say: it costs this case alone
            reason = f"{how}, and it could not be submitted again ({type(error).__name__}: {error})"
            return Finished(self._failed(task, f"its Ray task was lost: {reason}"))
        return None

    def _give_up(self, is_heard: bool) -> None:
        """Answer tasks that will not begin any more, and, long after a second signal, those that are lost."""
        import ray

        is_late = time.monotonic() - self._second_s > STOP_S
        with self._lock:
            over = [
                (ref, task) for ref, task in self._tasks.items() if is_late or (is_heard and not task.begun)
            ]
        for ref, task in over:
            ray.cancel(ref, force=is_late)
            self._forget(ref)
            how = "ended without an answer" if task.begun else "not begun"
            task.tell(task.order, Interrupted(f"{task.order.case.label}: {how}; {GO_ON}"))

    def _forget(self, ref: Any) -> _Task:
        with self._lock:
            task = self._tasks.pop(ref)
        if task.group is not None:
            task.group.remove()
        self._ended.append(task.key)
        return task

    def _failed(self, task: _Task, reason: str) -> Result:
        return failed_result(
            task.order.case, f"{reason}; run the same command again", self._share.device, self._share.threads
        )


def executor(asked: Asked) -> Executor:
    """Return what runs cases on a Ray cluster; raises UserInputError where Ray is not installed."""
    require_ray()
    return Ray(asked)
