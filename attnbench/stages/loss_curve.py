"""The loss curve and step times of a training that may stop and go on, and what is reported of them."""

from __future__ import annotations

import math
from statistics import fmean

from pydantic import Field

from attnbench.results import Measurement, Record
from attnbench.stages.store import StageOutput

FINAL_PART = 0.1  # of the steps, at the end: `final_loss` is their mean


class Progress(Record):
    """How far a training has come; lives in the checkpoint's metadata."""

    step: int = 0
    """Optimizer steps done."""
    curve: list[tuple[float, float]] = Field(default_factory=list)
    """(step, mean loss of the interval that ends there)."""
    step_time_ms: list[float] = Field(default_factory=list)
    """Mean time of a step in each of these intervals."""
    open_losses: list[float] = Field(default_factory=list)
    """Losses of the steps since the last point of the curve."""
    open_seconds: float = 0.0
    """Time spent on those steps."""
    train_seconds: float = 0.0
    """Time spent on all steps, over every run that took part."""


class LossCurve:
    """Collects the loss and the time of each step into means over `log_every` steps."""

    def __init__(self, progress: Progress, *, log_every: int, num_steps: int) -> None:
        self._log_every, self._num_steps = log_every, num_steps
        self.step, self.train_seconds = progress.step, progress.train_seconds
        self._curve, self._step_time_ms = list(progress.curve), list(progress.step_time_ms)
        self._open_losses, self._open_seconds = list(progress.open_losses), progress.open_seconds

    def add(self, loss: float, seconds: float) -> None:
        """Count one finished step; the last interval may be shorter than the others."""
        self.step += 1
        self.train_seconds += seconds
        self._open_losses.append(loss)
        self._open_seconds += seconds
        if self.step % self._log_every == 0 or self.step == self._num_steps:
            self._curve.append((float(self.step), fmean(self._open_losses)))
            self._step_time_ms.append(1000 * self._open_seconds / len(self._open_losses))
            self._open_losses, self._open_seconds = [], 0.0

    @property
    def last(self) -> float | None:
        """The newest point of the curve, or None before the first."""
        return self._curve[-1][1] if self._curve else None

    def progress(self) -> Progress:
        """Return everything needed to go on from here."""
        return Progress(
            step=self.step,
            curve=list(self._curve),
            step_time_ms=list(self._step_time_ms),
            open_losses=list(self._open_losses),
            open_seconds=self._open_seconds,
            train_seconds=self.train_seconds,
        )


def describe_training(progress: Progress, batch_size: int) -> StageOutput:
    """Return the measurements and the curve of a finished training."""
    steps, seconds = progress.step, progress.train_seconds
    measurements = [
        Measurement(name="steps", values=[steps]),
        Measurement(name="train_time_s", unit="s", values=[seconds], n=steps, better="lower"),
        Measurement(
            name="step_time_ms",
            unit="ms",
            values=progress.step_time_ms,
            n=steps,
            better="lower",
            note="means over log intervals",
        ),
        Measurement(
            name="train_images_per_s", unit="1/s", values=[steps * batch_size / seconds], better="higher"
        ),
        Measurement(
            name="final_loss",
            values=[_final_loss(progress)],
            n=steps - math.floor(steps * (1 - FINAL_PART)),
            better="lower",
            note="mean over the last tenth of the steps",
        ),
    ]
    return StageOutput(measurements=measurements, curves={"loss": progress.curve})


def _final_loss(progress: Progress) -> float:
    """Return the mean loss of the intervals in the last tenth, weighted by the steps they hold there."""
    start, total, weight = progress.step * (1 - FINAL_PART), 0.0, 0.0
    previous = 0.0
    for step, mean in progress.curve:
        inside = max(0.0, step - max(previous, start))
        total, weight, previous = total + inside * mean, weight + inside, step
    return total / weight
