"""The parent's side of a measuring child: start it, ask it, and say in words how it ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType

from attnbench.profiling.protocol import REPLY, ROUND, Job, Ready, Refusal, Samples, Started

START_LIMIT_S = 300.0  # importing torch from a cold, slow disk


class Child:
    """One fresh process that measures one row; `budget_s` is the time it may use after its start.

    Every answer is a reply of the protocol; a child that dies or runs out of time answers `Refusal`.
    """

    def __init__(self, budget_s: float) -> None:
        self.limit_s = self.budget_s = budget_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "attnbench.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

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
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:  # a line the dead child never read
                    continue

    def _ask(self, line: str) -> Started | Ready | Samples | Refusal:
        assert self._process.stdin is not None
        start = time.monotonic()
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._obituary()
        reply = self._reply(self.budget_s, f"did not finish within {self.limit_s:g} s (timeout_s)")
        self.budget_s -= time.monotonic() - start
        return reply

    def _reply(self, timeout_s: float, too_late: str) -> Started | Ready | Samples | Refusal:
        """Wait for one whole line."""
        assert self._process.stdout is not None
        pipe, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([pipe], [], [], max(0.0, left_s))
            if not readable:
                self.close()
                return Refusal(status="skipped", reason=too_late)
            piece = os.read(pipe, 2**16)
            if not piece:
                return self._obituary()
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return REPLY.validate_json(line)

    def _obituary(self) -> Refusal:
        """Say how the process ended."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.close()
            return Refusal(status="failed", reason="the measuring process closed its output and hung")
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        end = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            end += " (which is how a system out of memory ends processes)"
        last_words = f": {lines[-1].strip()}" if lines else ""
        return Refusal(status="failed", reason=f"the measuring process {end}{last_words}")


def _as_refusal(reply: Started | Ready | Samples | Refusal) -> Refusal:
    if isinstance(reply, Refusal):
        return reply
    return Refusal(status="failed", reason=f"the measuring process answered out of turn: {reply.event}")
