"""What a task of a Slurm array runs: a case's process beside it, what that says, and what Slurm tells it.

Driver and task share a folder of the run, the spool. In its folder of a task, which the task holds while it
works, `progress` is the last progress, `said` what must all be heard, `answer` the end. `stop` stands in the
spool where the driver wants no more. submitit starts the task, of a case on several nodes on each of them
(`slurm_nodes`), and calls `checkpoint` on the first when Slurm announces the time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from attnbench.errors import StorageError
from attnbench.processes import ChildProcess
from attnbench.running.executors import slurm_nodes
from attnbench.running.executors.asking import Asking, lacking_for, other_code
from attnbench.running.executors.conversation import Conversation
from attnbench.running.executors.cradle import KEEP_MEMORY_MAPPED, MODULE, NAME
from attnbench.running.executors.interface import Finished, Interrupted
from attnbench.running.executors.lending import CannotJoinError, Crew, failed
from attnbench.storage.atomic import atomic_write
from attnbench.storage.locks import alone_in
from attnbench.storage.store import NOTICE, STAGE_ENDED

PROGRESS, SAID, ANSWER, STOP = "progress", "said", "answer", "stop"
POST_S = 1.0  # between two looks at `stop`, and two writings of progress
KILLED_SOON_S = 900.0  # after a SIGTERM that is not the driver's: Slurm requeues the task, or ends it


class SlurmTask:
    """A case as submitit carries it to a node, and calls it there."""

    def __init__(self, asking: Asking, folder: Path, code: str) -> None:
        self._asking, self._folder, self._code = asking.model_dump(mode="json"), folder, code
        self._talk: Conversation | None = None
        self._hearing: threading.Thread | None = None
        self._outcome: Finished | Interrupted | None = None
        self._crew: Crew | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Carry what is asked alone."""
        return {**self.__dict__, "_talk": None, "_hearing": None, "_outcome": None, "_crew": None}

    def __call__(self) -> None:
        """Run the case to its end, unless the driver has said stop; leaves an answer in the spool."""
        asked = Asking.model_validate(self._asking)
        if self._is_answered():  # requeued, for a node that was lost when all was said
            return
        if asked.nodes > 1 and slurm_nodes.number_here() > 0:
            slurm_nodes.lend_to_first(asked, self._folder, self._code, self._is_answered)
            return
        if self._is_stopped():
            self._answer({"interrupted": ""})
            return
        lacks = other_code(self._code) or lacking_for([asked.case])
        if lacks:
            self._answer(failed(asked, f"node {socket.gethostname()}: " + "; ".join(lacks)))
            return
        with alone_in(self._folder, lambda text: None):
            self._write(PROGRESS, ["", 0, 0, socket.gethostname()])
            try:
                crew = slurm_nodes.gather(asked, self._folder, self._is_stopped)
                if crew is None:
                    self._answer({"interrupted": ""})
                    return
                with crew:
                    self._run(asked, crew)
            except CannotJoinError as error:
                self._answer(error.answer)

    def checkpoint(self) -> Any:
        """Have the case saved; return what submitit is to requeue, or None where the driver wants no more."""
        import submitit

        self._stop()
        if self._is_stopped():
            self._answer_as_it_ended()
            return None
        return submitit.helpers.DelayedSubmission(self)

    def _run(self, asked: Asking, crew: Crew) -> None:
        self._crew = crew
        environment = {**KEEP_MEMORY_MAPPED, **os.environ, "OMP_NUM_THREADS": str(asked.threads)}
        # Slurm's signals reach every process of a task: USR2 would end the case's process on the spot
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            child = ChildProcess(MODULE, NAME, environment=environment, log=asked.log)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        with child:
            self._talk = Conversation(child, asked.request(crew.hosts), self._hear)
            signal.signal(signal.SIGTERM, self._on_sigterm)
            self._hearing = threading.Thread(target=self._hear_out, daemon=True)
            self._hearing.start()
            while self._hearing.is_alive():
                self._hearing.join(POST_S)
                if self._is_stopped():
                    self._stop()
        if isinstance(self._outcome, Interrupted) and not self._is_stopped():
            self._wait_for_the_end()
        self._answer_as_it_ended()

    def _hear_out(self) -> None:
        assert self._talk is not None
        self._outcome = self._talk.hear_out()

    def _hear(self, stage: str, done: int, total: int, note: str) -> None:
        """Write down what the case's process says; of progress at most once in POST_S.

        A disk that is full costs news, not the case.
        """
        words = [stage, done, total, note]
        with contextlib.suppress(OSError, StorageError):
            if stage in (NOTICE, STAGE_ENDED):
                with (self._folder / SAID).open(
                    "ab"
                ) as file:  # after a line that a dead node left unfinished
                    file.write(b"\n" + json.dumps(words).encode() + b"\n")
            elif time.monotonic() - self._posted_s >= POST_S:
                self._write(PROGRESS, words)

    _posted_s = float("-inf")

    def _write(self, what: str, content: Sequence[Any] | dict[str, Any]) -> None:
        self._posted_s = time.monotonic()
        atomic_write(self._folder / what, json.dumps(content).encode())

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Save at once: the driver's stop, a preemption, or somebody's scancel."""
        if self._talk is not None:
            self._talk.stop(signal.SIGTERM, 1)

    def _stop(self) -> None:
        if self._talk is not None and self._hearing is not None:
            self._talk.stop(signal.SIGTERM, 1)
            self._hearing.join()

    def _is_answered(self) -> bool:
        return (self._folder / ANSWER).exists()

    def _is_stopped(self) -> bool:
        return (self._folder.parent / STOP).exists()

    def _wait_for_the_end(self) -> None:
        """Wait for Slurm to requeue or kill a task that is saved; one that ends by itself is over."""
        until = time.monotonic() + KILLED_SOON_S
        while time.monotonic() < until and not self._is_stopped():
            time.sleep(POST_S)

    def _answer_as_it_ended(self) -> None:
        self._answer(self._crew.answer(self._outcome) if self._crew else {"interrupted": ""})

    def _answer(self, content: dict[str, Any]) -> None:
        self._write(ANSWER, content)
