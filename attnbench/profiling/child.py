"""The parent's side of a measuring child: questions, time limits, and what its end means for a row."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TypeVar

from attnbench.processes import ChildProcess, ChildStartError, Nursery, UnreadableReplyError
from attnbench.profiling.protocol import (
    REPLY,
    ROUND,
    Answer,
    Ceilings,
    Job,
    Measured,
    Ready,
    Refusal,
    Round,
    Samples,
    Started,
    Tried,
    TriedPrecisions,
)

WORKER = "attnbench.profiling.worker"
START_LIMIT_S = 300.0  # importing torch from a cold, slow disk
Kind = TypeVar("Kind", Started, Measured, Tried, TriedPrecisions, Ceilings, Ready, Samples)


class Child:
    """A process of its own for one job; `budget_s` is the time it may use after its start.

    `limit_s` is what the user set, where a budget is what is left of it.
    Every answer is a reply of the protocol; a child that dies or runs out of time answers `Refusal`.
    """

    def __init__(
        self, budget_s: float, nursery: Nursery | None = None, *, limit_s: float | None = None
    ) -> None:
        self.budget_s, self.limit_s = budget_s, budget_s if limit_s is None else limit_s
        self._process: ChildProcess | None = None
        self._not_started = ""
        try:
            self._process = ChildProcess(WORKER, "the measuring process", nursery=nursery)
        except ChildStartError as error:
            self._not_started = str(error)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def measure_memory(self, job: Job) -> Measured | Refusal:
        """Have the model built and the memory of a pass measured."""
        return self._first_answer(job, Measured)

    def try_threads(self, job: Job) -> Tried | Refusal:
        """Have a pass timed with several numbers of threads."""
        return self._first_answer(job, Tried)

    def try_precisions(self, job: Job) -> TriedPrecisions | Refusal:
        """Have a pass timed in fp32 and in bf16."""
        return self._first_answer(job, TriedPrecisions)

    def find_ceilings(self, job: Job) -> Ceilings | Refusal:
        """Have the best of the machine measured, in the precision of the job's workload."""
        return self._first_answer(job, Ceilings)

    def set_up(self, job: Job) -> Ready | Refusal:
        """Have the model built and warmed up."""
        return self._first_answer(job, Ready)

    def take_round(self) -> Round | Refusal:
        """Have one round of timings taken."""
        reply = _expected(self._ask(ROUND), Samples)
        return reply.round if isinstance(reply, Samples) else reply

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.end()

    def _first_answer(self, job: Job, kind: type[Kind]) -> Kind | Refusal:
        """Wait for the child's imports, which do not count against its budget, then for its answer."""
        if self._process is None:
            return Refusal(status="failed", reason=self._not_started)
        started = _expected(self._reply(START_LIMIT_S, f"did not start within {START_LIMIT_S:g} s"), Started)
        return started if isinstance(started, Refusal) else _expected(self._ask(job.model_dump_json()), kind)

    def _ask(self, line: str) -> Answer:
        assert self._process is not None
        start = time.monotonic()
        self._process.send(line)
        reply = self._reply(self.budget_s, f"did not finish within {self.limit_s:g} s (timeout_s)")
        self.budget_s -= time.monotonic() - start
        return reply

    def _reply(self, timeout_s: float, too_late: str) -> Answer:
        assert self._process is not None
        try:
            reply = self._process.receive(REPLY, max(0.0, timeout_s))
        except TimeoutError:
            self.close()
            return Refusal(status="skipped", reason=too_late)
        except UnreadableReplyError as error:
            self.close()
            return Refusal(status="failed", reason=str(error))
        return reply or Refusal(status="failed", reason=self._process.how_it_ended())


def _expected(reply: Answer, kind: type[Kind]) -> Kind | Refusal:
    if isinstance(reply, kind | Refusal):
        return reply
    return Refusal(status="failed", reason=f"the measuring process answered out of turn: {reply.event}")
