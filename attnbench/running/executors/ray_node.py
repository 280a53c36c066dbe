"""What runs on the nodes of a Ray cluster: a case beside its worker, and what it says.

Nothing here imports Ray at the top: it is imported by Ray's workers, which have it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from attnbench.processes import ChildProcess
from attnbench.running.executors.asking import Asking
from attnbench.running.executors.conversation import Conversation
from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED, MODULE, NAME
from attnbench.running.executors.lending import CannotJoinError
from attnbench.running.executors.ray_nodes import gather
from attnbench.storage.store import NOTICE, STAGE_ENDED

POSTS_A_SECOND = 100.0  # of all cases together: what an actor takes with ease
LEAST_S = 0.1  # between two posts of a case
ANSWER_S = 30.0  # the mailbox may be on a machine that is slow, or cut off for a while
KEPT = 200  # notices and ended stages of a case that nobody has fetched yet

Words = tuple[str, int, int, str]
"""Stage, done, total, note."""


class Mailbox:
    """An actor beside the driver: what cases say until it is fetched, and what they are told.

    Bounded: of a case's progress the last is kept, of its notices and ended stages KEPT.
    """

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._begun: dict[str, str] = {}
        """The nodes of tasks."""
        self._progress: dict[str, Words] = {}
        self._said: dict[str, deque[Words]] = {}

    def begin(self, key: str, node: str) -> bool:
        """Note that a task begins on a node, unless it has been told to stop: then it must not."""
        if not self._signals:
            self._begun[key] = node
        return not self._signals

    def post(
        self, key: str, node: str, progress: Words | None, said: Sequence[Words]
    ) -> tuple[list[int], float]:
        """Keep what a case says; return the signals so far, and after how many seconds to post again."""
        self._begun[key] = node  # a mailbox that was lost and made anew has not heard of it
        if progress is not None:
            self._progress[key] = progress
        if said:
            self._said.setdefault(key, deque(maxlen=KEPT)).extend(said)
        return self._signals, max(LEAST_S, len(self._begun) / POSTS_A_SECOND)

    def fetch(
        self, signals: Sequence[int], forget: Sequence[str]
    ) -> tuple[dict[str, str], dict[str, list[Words]]]:
        """Take the driver's signals in; return where tasks have begun and what was said since the last time.

        `forget` names tasks that have ended.
        """
        self._signals = list(signals)
        for key in forget:
            self._begun.pop(key, None)
        news = {key: list(said) for key, said in self._said.items()}
        for key, words in self._progress.items():
            news.setdefault(key, []).append(words)
        self._said, self._progress = {}, {}
        return self._begun, news


class _Post:
    """Carries what a case says to the mailbox, and the signals back; a thread beside the conversation."""

    def __init__(self, mailbox: Any, key: str) -> None:
        self._mailbox, self._key = mailbox, key
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._progress: Words | None = None
        self._said: deque[Words] = deque(maxlen=KEPT)

    def hear(self, stage: str, done: int, total: int, note: str) -> None:
        """Keep for the next post what the case's process says."""
        with self._lock:
            if stage in (NOTICE, STAGE_ENDED):
                self._said.append((stage, done, total, note))
            else:
                self._progress = (stage, done, total, note)

    @contextlib.contextmanager
    def carrying(self, talk: Conversation) -> Iterator[None]:
        """Post now and then while the block runs, and once after it."""
        thread = threading.Thread(target=self._carry, args=(talk,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def is_stopped(self) -> bool:
        """Tell whether the driver has heard a signal; a driver that cannot be asked has gone."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        try:
            signals, _ = ray.get(self._mailbox.post.remote(self._key, node, None, []), timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayError:
            return True
        return bool(signals)

    def _carry(self, talk: Conversation) -> None:
        import ray

        node, pause_s, is_last = ray.get_runtime_context().get_node_id(), LEAST_S, False
        while not is_last:
            is_last = self._ended.wait(pause_s)
            with self._lock:
                progress, said = self._progress, list(self._said)
                self._progress = None
                self._said.clear()
            try:
                posted = self._mailbox.post.remote(self._key, node, progress, said)
                signals, pause_s = ray.get(posted, timeout=ANSWER_S)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError:  # the driver's machine is gone: what is trained is worth saving
                signals = [signal.SIGTERM]
            for times, number in enumerate(signals[:2], start=1):
                talk.stop(number, times)


def run_order(
    asking: dict[str, Any], key: str, mailbox: Any, code: str = "", others: Sequence[Any] = ()
) -> dict[str, Any]:
    """Run a case's process beside this Ray worker and hear it out; the body of a task.

    `others` are the actors of its further nodes, `code` the driver's `source_digest`. Returns
    {"result": ...}, {"interrupted": ...} where it was told to stop, or {"lost": ...} for want of a node.
    """
    import ray

    if not ray.get(mailbox.begin.remote(key, ray.get_runtime_context().get_node_id())):
        return {"interrupted": ""}
    asked = Asking.model_validate(asking)
    # Ray sets OMP_NUM_THREADS in a worker to the CPUs of the first task that it runs there, where nobody has
    # set it: what the case computes with is said here, before a library reads it
    environment = {**KEEP_MEMORY_MAPPED, **os.environ, "OMP_NUM_THREADS": str(asked.threads)}
    post = _Post(mailbox, key)
    try:
        with gather(asked, code, others, post.is_stopped) as crew:
            with ChildProcess(MODULE, NAME, environment=environment, log=asked.log) as child:
                talk = Conversation(child, asked.request(crew.hosts), post.hear)
                with post.carrying(talk):
                    outcome = talk.hear_out()
            return crew.answer(outcome)
    except CannotJoinError as error:
        return error.answer
