"""The parent's side of a measuring child: questions, time limits, and what its end means for a row."""

from __future__ import annotations

import time
from types import TracebackType

from attnbench.processes import ChildProcess, UnreadableReplyError
from attnbench.profiling.protocol import REPLY, ROUND, Job, Ready, Refusal, Samples, Started

START_LIMIT_S = 300.0  # importing torch from a cold, slow disk


class Child:
    """One fresh process that measures one row; `budget_s` is the time it may use after its start.

    Every answer is a reply of the protocol; a child that dies or runs out of time answers `Refusal`.
    """

    def __init__(self, budget_s: float) -> None:
        self.limit_s = self.budget_s = budget_s
        self._process = ChildProcess("attnbench.profiling.worker", "the measuring process")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def wait_until_started(self) -> Started | Refusal:
        """Wait for the child's imports, which do not count against its budget."""
        reply = self._reply(START_LIMIT_S, f"did not start within {START_LIMIT_S:g} s")
        return reply if isinstance(reply, Started) else _as_refusal(reply)

    def set_up(self, job: Job) -> Ready | Refusal:
        """Have the model built, its memory measured, and warmed up."""
        reply = self._ask(job.model_dump_json())
        return reply if isinstance(reply, Ready) else _as_refusal(reply)

    def take_round(self) -> Samples | Refusal:
        """Have one round of timings taken."""
        reply = self._ask(ROUND)
        return reply if isinstance(reply, Samples) else _as_refusal(reply)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.end()

    def _ask(self, line: str) -> Started | Ready | Samples | Refusal:
        start = time.monotonic()
        self._process.send(line)
        reply = self._reply(self.budget_s, f"did not finish within {self.limit_s:g} s (timeout_s)")
        self.budget_s -= time.monotonic() - start
        return reply

    def _reply(self, timeout_s: float, too_late: str) -> Started | Ready | Samples | Refusal:
        try:
            reply = self._process.receive(REPLY, max(0.0, timeout_s))
        except TimeoutError:
            self.close()
            return Refusal(status="skipped", reason=too_late)
        except UnreadableReplyError as error:
            self.close()
            return Refusal(status="failed", reason=str(error))
        return reply or Refusal(status="failed", reason=self._process.how_it_ended())


def _as_refusal(reply: Started | Ready | Samples | Refusal) -> Refusal:
    if isinstance(reply, Refusal):
        return reply
    return Refusal(status="failed", reason=f"the measuring process answered out of turn: {reply.event}")
