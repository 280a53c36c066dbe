"""What the first process of a training writes while it runs: log, clock, held-out loss and checkpoints."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnbench.stages.interrupts import GO_ON, Stopped, StopRequest
from attnbench.stages.training.log import LogRecord, RecordedStatistics, TrainingLog
from attnbench.stages.training.loss_curve import LossCurve, Timing

if TYPE_CHECKING:
    from attnbench.stages.training.trainer import Trainer

REPORT_EVERY_S = 0.2


class Journal:
    """Follows a trainer step by step; what it keeps goes into the trainer's progress with each checkpoint."""

    def __init__(self, trainer: Trainer, stop: StopRequest) -> None:
        self.trainer, self.stop, progress = trainer, stop, trainer.progress
        settings = trainer.settings
        self.curve = LossCurve(progress, log_every=settings.log_every, num_steps=settings.steps)
        self.log = TrainingLog(
            trainer.checkpoint_path.parent,
            kinds=settings.log,
            label=trainer.case.label,
            step=progress.step,
            log_bytes=progress.log_bytes,
        )
        trainer.timings = self.log.timings
        self._notes = list(progress.notes)
        self._saved_at, self._heard_at = time.perf_counter(), 0.0
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add(
        self,
        loss: float,
        norm: float,
        recorded: RecordedStatistics | None,
        held_out: list[float] | None,
        seconds: float,
        waited: float,
    ) -> None:
        """Count one finished step and log what was measured in it and behind it."""
        means = self.curve.add(loss, norm)
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        self._waited += waited
        if means is not None:
            self._write_timing(is_log_point=True)
            self.log.write(
                LogRecord(
                    step=self.curve.step,
                    loss=means[0],
                    grad_norm=means[1],
                    lr=self.trainer.rate(self.curve.step - 1),
                    recorded={} if recorded is None else recorded.summary(),
                )
            )
        if held_out is not None:
            self.curve.held_out_curve.append((float(self.curve.step), sum(held_out) / len(held_out)))
            self.log.write(LogRecord(step=self.curve.step, held_out_loss=held_out))
        self._report()

    def wants_checkpoint(self) -> bool:
        """Tell whether clock or signal ask for a checkpoint after the present step."""
        old = time.perf_counter() - self._saved_at > 60 * self.trainer.settings.checkpoint_minutes
        return old or self.stop.number is not None

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Bring the trainer's progress up to date for the block that saves it; Stopped if a signal asked."""
        if self._steps:
            self._write_timing(is_log_point=False)
        self.trainer.progress = self.curve.progress(
            log_bytes=self.log.sync(), notes=[*self._notes, *self.log.notes]
        )
        yield
        self._saved_at = time.perf_counter()
        if self.stop.number:
            name = signal.Signals(self.stop.number).name
            raise Stopped(
                self.stop.number,
                f"{self.trainer.case.label}: stopped by {name} at training step {self.curve.step} of "
                f"{self.trainer.settings.steps}, which is saved; {GO_ON}",
            )

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
        now, settings, done = time.perf_counter(), self.trainer.settings, self.curve.step
        if now - self._heard_at > REPORT_EVERY_S or done == settings.steps:
            self._heard_at = now
            note = f"loss {self.curve.curve[-1][1]:.4f}" if self.curve.curve else ""
            self.trainer.workspace.report("train", done, settings.steps, note)
