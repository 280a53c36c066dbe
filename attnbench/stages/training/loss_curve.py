"""How far a training has come, its curves and its times, and what is reported of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from pydantic import Field

from attnbench.results import Measurement, Record
from attnbench.storage.store import StageOutput

Point = tuple[float, float]
FINAL_PART = 0.1  # of the steps, at the end: `final_loss` is their mean


class TrainingProgress(Record):
    """How far a training has come; lives in the checkpoint's metadata. Holds nothing of the clock."""

    step: int = 0
    """Optimizer steps done."""
    curve: list[tuple[float, float]] = Field(default_factory=list)
    """(step, mean loss of the interval that ends there)."""
    held_out_curve: list[tuple[float, float]] = Field(default_factory=list)
    """(step, mean held-out loss of the averaged weights there)."""
    router_curves: dict[str, list[tuple[float, float]]] = Field(default_factory=dict)
    """How evenly routers chose, by curve (`report.router_curves`); none of what no router was heard of."""
    open_losses: list[float] = Field(default_factory=list)
    """Losses of the steps since the last point of the curve."""
    open_norms: list[float] = Field(default_factory=list)
    """Gradient norms of these steps."""
    log_bytes: int = 0
    """Length of train.jsonl at this step."""
    notes: list[str] = Field(default_factory=list)
    """What a reader of the results must know about this training."""
    teacher: str = ""
    """SHA-256 of the weights that it is taught by; empty: by none."""
    went_on_from: int = 0
    """Steps that a finished training of so many had made; 0: it has made all itself."""


class Timing(Record):
    """The clock over some consecutive steps: one line of timing.jsonl."""

    step: int
    """The last of these steps."""
    steps: int
    """How many they are."""
    seconds: float
    """Time they took, in seconds."""
    data_wait_s: float
    """Part of it spent waiting for the batch."""
    is_log_point: bool
    """Whether a log interval ends here."""


class LossCurve:
    """Collects loss and gradient norm of each step into means over `log_every` steps."""

    def __init__(self, progress: TrainingProgress, *, log_every: int, num_steps: int) -> None:
        self._log_every, self._num_steps = log_every, num_steps
        self.step = progress.step
        self.curve, self.held_out_curve = list(progress.curve), list(progress.held_out_curve)
        self._losses, self._norms = list(progress.open_losses), list(progress.open_norms)

    def is_point(self, step: int) -> bool:
        """Tell whether an interval ends at `step`; the last one may be shorter than the others."""
        return step % self._log_every == 0 or step == self._num_steps

    def add(self, loss: float, norm: float) -> tuple[float, float] | None:
        """Count one finished step; returns mean loss and mean gradient norm where an interval ends."""
        self.step += 1
        self._losses.append(loss)
        self._norms.append(norm)
        if not self.is_point(self.step):
            return None
        means = fmean(self._losses), fmean(self._norms)
        self.curve.append((float(self.step), means[0]))
        self._losses, self._norms = [], []
        return means

    def progress(
        self, *, log_bytes: int, notes: Sequence[str], router_curves: Mapping[str, Sequence[Point]]
    ) -> TrainingProgress:
        """Return everything needed to go on from here."""
        return TrainingProgress(
            step=self.step,
            curve=list(self.curve),
            held_out_curve=list(self.held_out_curve),
            router_curves={name: list(points) for name, points in router_curves.items()},
            open_losses=list(self._losses),
            open_norms=list(self._norms),
            log_bytes=log_bytes,
            notes=list(notes),
        )


def describe_training(progress: TrainingProgress, timings: Sequence[Timing], batch_size: int) -> StageOutput:
    """Return the measurements and the curves of a finished training."""
    steps = progress.step
    measurements = [Measurement(name="steps", values=[steps]), *_times(timings, progress, batch_size)]
    measurements.append(
        Measurement(
            name="final_loss",
            values=[_final_loss(progress)],
            n=steps - math.floor(steps * (1 - FINAL_PART)),
            better="lower",
            note="mean over the last tenth of the steps",
        )
    )
    if progress.notes:
        measurements.append(
            Measurement(
                name="training_warnings", values=[len(progress.notes)], note="; ".join(progress.notes)
            )
        )
    return StageOutput(measurements=measurements, curves={"loss": progress.curve, **progress.router_curves})


def _times(timings: Sequence[Timing], progress: TrainingProgress, batch_size: int) -> list[Measurement]:
    """Return the measurements of the clock; `timings` may cover less than all steps after a power cut."""
    steps, earlier = progress.step, progress.went_on_from
    covered, seconds = sum(t.steps for t in timings), sum(t.seconds for t in timings)
    said = [f"of {covered} of {steps} steps; the clock of the others is lost"] if covered != steps else []
    if earlier:
        said.append(f"the first {earlier:,} steps were made by the training of {earlier:,}, wherever it ran")
    note = "; ".join(said)
    waited = sum(t.data_wait_s for t in timings)
    return [
        Measurement(name="train_time_s", unit="s", values=[seconds], n=covered, better="lower", note=note),
        Measurement(
            name="step_time_ms",
            unit="ms",
            values=_interval_means(timings),
            n=covered,
            better="lower",
            note="means over log intervals",
        ),
        Measurement(
            name="train_images_per_s",
            unit="1/s",
            values=[covered * batch_size / seconds] if seconds else [],
            better="higher",
        ),
        Measurement(
            name="data_wait_share",
            values=[waited / seconds] if seconds else [],
            n=covered,
            better="lower",
            note="part of the step's time spent waiting for its batch",
        ),
    ]


def _interval_means(timings: Sequence[Timing]) -> list[float]:
    """Return the mean step time of each log interval, in milliseconds."""
    means, steps, seconds = [], 0, 0.0
    for timing in timings:
        steps, seconds = steps + timing.steps, seconds + timing.seconds
        if timing.is_log_point:
            means.append(1000 * seconds / steps)
            steps, seconds = 0, 0.0
    return means


def _final_loss(progress: TrainingProgress) -> float:
    """Return the mean loss of the intervals in the last tenth, weighted by the steps they hold there."""
    start, total, weight = progress.step * (1 - FINAL_PART), 0.0, 0.0
    previous = 0.0
    for step, mean in progress.curve:
        inside = max(0.0, step - max(previous, start))
        total, weight, previous = total + inside * mean, weight + inside, step
    return total / weight
