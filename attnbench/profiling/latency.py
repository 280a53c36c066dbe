"""Timing of one pass: warm-up by time, samples that are long enough, every sample kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from attnbench.profiling.conditions import stolen_s, waited_s
from attnbench.profiling.protocol import Round
from attnbench.profiling.rows import CLEAN_BELOW, LEAST_SAMPLES

SAMPLE_MS = 2.0  # shorter passes are repeated, so that the clock's and the loop's cost stay below 0.1 %
ROUND_S = 0.03  # short, so that the rows of a round meet the same machine: its pace changes within 0.1 s
LONG_MS = 500.0  # of a pass that takes this long, one sample is a round
STABLE_WITHIN = 0.03
WINDOW = 5

Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timing, per pass."""

    latency_ms: float
    cpu_time_ms: float
    waited_share: float | None = None
    warm_latency_ms: float | None = None


class Timer(Protocol):
    """Takes one sample of a pass that it runs `repeats` times."""

    def sample(self, run: Run, repeats: int) -> Sample: ...

    def rest(self) -> None:
        """Give back what other children may need until the next round."""


class CpuTimer:
    """Monotonic wall clock; what the threads waited for a core tells how far to trust it."""

    def sample(self, run: Run, repeats: int) -> Sample:
        """Time `repeats` passes together."""
        waited, cpu_time = waited_s(), time.process_time()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        elapsed_s = time.perf_counter() - start
        cpu_time_s, waited_after = time.process_time() - cpu_time, waited_s()
        share = None if waited is None or waited_after is None else (waited_after - waited) / elapsed_s
        return Sample(
            latency_ms=1e3 * elapsed_s / repeats, cpu_time_ms=1e3 * cpu_time_s / repeats, waited_share=share
        )

    def rest(self) -> None:
        """Hold on to nothing."""


def warm_up(run: Run, timer: Timer, *, limit_s: float) -> float:
    """Run until the time of a pass is stable or `limit_s` is over; return that time in ms.

    Stable: the medians of the last two windows of 5 samples differ by less than 3 %.
    """
    start = time.perf_counter()
    times = [timer.sample(run, 1).latency_ms]
    while time.perf_counter() - start < limit_s:
        repeats = _repeats(min(times[-WINDOW:]))
        times.append(timer.sample(run, repeats).latency_ms)
        if len(times) >= 2 * WINDOW + 1:  # the first pays for lazy initialisation: in no window
            earlier = statistics.median(times[-2 * WINDOW : -WINDOW])
            later = statistics.median(times[-WINDOW:])
            if abs(later - earlier) <= STABLE_WITHIN * earlier:
                break
    return statistics.median(times[-WINDOW:])


def _repeats(pass_ms: float) -> int:
    return max(1, ceil(SAMPLE_MS / max(pass_ms, 1e-3)))


def take_round(run: Run, timer: Timer, *, pass_ms: float) -> Round:
    """Take one round of samples; the children before this one have cooled its caches, so warm first.

    Where threads had to wait for a core, it goes on until three samples are clean, for 5 times as long at
    most.
    """
    if pass_ms < LONG_MS:
        run()
    least = LEAST_SAMPLES if pass_ms < LONG_MS else 1
    repeats = _repeats(pass_ms)
    taken: list[Sample] = []
    stolen = stolen_s()
    start = time.perf_counter()
    while True:
        taken.append(timer.sample(run, repeats))
        elapsed_s = time.perf_counter() - start
        clean = sum((s.waited_share or 0.0) <= CLEAN_BELOW for s in taken)
        if len(taken) >= least and elapsed_s >= ROUND_S and (clean >= least or elapsed_s >= 5 * ROUND_S):
            break
    timer.rest()
    return Round(
        latency_ms=[s.latency_ms for s in taken],
        warm_latency_ms=[s.warm_latency_ms for s in taken if s.warm_latency_ms is not None],
        cpu_time_ms=[s.cpu_time_ms for s in taken],
        waited_share=[s.waited_share for s in taken if s.waited_share is not None],
        stolen_share=max(0.0, stolen_s() - stolen) / elapsed_s,
    )
