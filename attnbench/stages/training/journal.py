"""What the first process of a training notes while it runs: loss curve, log and clock, and tells the user."""

from __future__ import annotations

import time

from attnbench.specs import Case
from attnbench.stages.interrupts import GO_ON, Stopped, StopRequest
from attnbench.stages.training.log import LogRecord, RecordedStatistics, TrainingLog
from attnbench.stages.training.loss_curve import LossCurve, Timing, TrainingProgress
from attnbench.stages.training.router_balance import RouterBalance
from attnbench.storage.store import Workspace

REPORT_EVERY_S = 0.2


class Journal:
    """Follows one training step by step, from `progress` on; what it notes goes into each checkpoint.

    Before a checkpoint ask for `progress()`, after it tell `saved()`.
    """

    def __init__(
        self, case: Case, workspace: Workspace, progress: TrainingProgress, stop: StopRequest
    ) -> None:
        self.label, self.settings, self.workspace, self.stop = case.label, case.train, workspace, stop
        self.curve = LossCurve(progress, log_every=self.settings.log_every, num_steps=self.settings.steps)
        self.balance = RouterBalance(progress.router_curves, case.model, self.settings)
        self.log = TrainingLog(
            workspace.folder("train", case),
            kinds=self.settings.log,
            label=case.label,
            step=progress.step,
            log_bytes=progress.log_bytes,
        )
        self._notes = list(progress.notes)
        self._saved_at, self._heard_at = time.perf_counter(), 0.0
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    @property
    def timings(self) -> list[Timing]:
        """What the clock said of all steps so far, those of earlier runs included; the list grows."""
        return self.log.timings

    def add(
        self,
        *,
        loss: float,
        norm: float,
        rate: float,
        recorded: RecordedStatistics | None,
        held_out: list[float] | None,
        seconds: float,
        waited: float,
    ) -> None:
        """Count one finished step and log what was measured in it and behind it."""
        means = self.curve.add(loss, norm)
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        self._waited += waited
        if recorded is not None:
            self.balance.add(self.curve.step, recorded.choices())
        if means is not None:
            self._write_timing(is_log_point=True)
            self.log.write(
                LogRecord(
                    step=self.curve.step,
                    loss=means[0],
                    grad_norm=means[1],
                    lr=rate,
                    recorded={} if recorded is None else recorded.summary(),
                )
            )
        if held_out is not None:
            self.curve.held_out_curve.append((float(self.curve.step), sum(held_out) / len(held_out)))
            self.log.write(LogRecord(step=self.curve.step, held_out_loss=held_out))
        self._report()

    def wants_checkpoint(self) -> bool:
        """Tell whether clock or signal ask for a checkpoint after the present step."""
        old = time.perf_counter() - self._saved_at > 60 * self.settings.checkpoint_minutes
        return old or self.stop.number is not None

    def progress(self) -> TrainingProgress:
        """Return what a checkpoint has to hold of this training, with the log on the disk up to there."""
        if self._steps:
            self._write_timing(is_log_point=False)
        return self.curve.progress(
            log_bytes=self.log.sync(),
            notes=[*self._notes, *self.log.notes],
            router_curves=self.balance.curves,
        )

    def saved(self) -> None:
        """Count the time to the next checkpoint from now; raises Stopped if a signal asked for this one."""
        self._saved_at = time.perf_counter()
        if self.stop.number:
            raise Stopped(  # whoever runs a case in a process sends SIGTERM, whatever it was told itself
                self.stop.number,
                f"{self.label}: stopped at training step {self.curve.step} of "
                f"{self.settings.steps}, which is saved; {GO_ON}",
            )

    def close(self) -> None:
        """Close the log's files."""
        self.log.close()

    def _write_timing(self, *, is_log_point: bool) -> None:
        self.log.write_timing(
            Timing(
                step=self.curve.step,
                steps=self._steps,
                seconds=self._seconds,
                data_wait_s=self._waited,
                is_log_point=is_log_point,
            )
        )
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def _report(self) -> None:
        now, done = time.perf_counter(), self.curve.step
        if now - self._heard_at > REPORT_EVERY_S or done == self.settings.steps:
            self._heard_at = now
            note = f"loss {self.curve.curve[-1][1]:.4f}" if self.curve.curve else ""
            self.workspace.report("train", done, self.settings.steps, note)
