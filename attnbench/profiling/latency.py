"""Timing of one forward pass: warm-up by time, samples that are long enough, every sample kept."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import torch

from attnbench.profiling.protocol import Samples

SAMPLE_MS = 2.0  # shorter passes are repeated, so that the clock's and the loop's cost stay below 0.1 %
ROUND_S = 0.25
SAMPLES_PER_ROUND = 3  # at least, ...
LONG_MS = 1000.0  # ... unless one pass takes this long: then one is a round
STABLE_WITHIN = 0.03
WINDOW = 5

Forward = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timing, per forward pass."""

    latency_ms: float
    cpu_time_ms: float
    clean: bool
    warm_latency_ms: float | None = None


class Timer(Protocol):
    """Takes one sample of a forward pass that it runs `repeats` times."""

    def sample(self, forward: Forward, repeats: int) -> Sample: ...

    def rest(self) -> None:
        """Give back what other children may need until the next round."""


class CpuTimer:
    """Monotonic wall clock; CPU time and involuntary context switches tell how far to trust it."""

    def sample(self, forward: Forward, repeats: int) -> Sample:
        """Time `repeats` passes together."""
        with _process_cost(repeats) as cost:
            start = time.perf_counter()
            for _ in range(repeats):
                forward()
            elapsed_s = time.perf_counter() - start
        return Sample(latency_ms=1e3 * elapsed_s / repeats, cpu_time_ms=cost.cpu_time_ms, clean=cost.clean)

    def rest(self) -> None:
        """Hold on to nothing."""


class CudaTimer:
    """Device events; once after flushing the L2 cache outside the timed region, then warm."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(4 * max(l2_bytes, 2**22), dtype=torch.int8, device=device)

    def sample(self, forward: Forward, repeats: int) -> Sample:
        """Time one cold pass, then `repeats` warm ones together."""
        with _process_cost(repeats + 1) as cost:
            self.flush.zero_()
            cold_ms = self._elapsed_ms(forward, 1)
            warm_ms = self._elapsed_ms(forward, repeats)
        return Sample(
            latency_ms=cold_ms, warm_latency_ms=warm_ms, cpu_time_ms=cost.cpu_time_ms, clean=cost.clean
        )

    def _elapsed_ms(self, forward: Forward, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            forward()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def rest(self) -> None:
        """Return cached blocks to the device: the other children share its memory."""
        torch.cuda.empty_cache()


@dataclass
class _Cost:
    cpu_time_ms: float = 0.0
    clean: bool = True


@contextmanager
def _process_cost(repeats: int) -> Iterator[_Cost]:
    """Yield what fills with this process's CPU time per pass and whether it was left alone."""
    cost = _Cost()
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    start = time.process_time()
    yield cost
    cost.cpu_time_ms = 1e3 * (time.process_time() - start) / repeats
    cost.clean = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches


def warm_up(forward: Forward, timer: Timer, *, limit_s: float) -> float:
    """Run until the time of a pass is stable or `limit_s` is over; return that time in ms.

    Stable: the medians of the last two windows of 5 samples differ by less than 3 %.
    """
    start = time.perf_counter()
    times = [timer.sample(forward, 1).latency_ms]
    while time.perf_counter() - start < limit_s:
        repeats = _repeats(min(times[-WINDOW:]))
        times.append(timer.sample(forward, repeats).latency_ms)
        if len(times) >= 2 * WINDOW + 1:  # the first pays for lazy initialisation: in no window
            earlier = statistics.median(times[-2 * WINDOW : -WINDOW])
            later = statistics.median(times[-WINDOW:])
            if abs(later - earlier) <= STABLE_WITHIN * earlier:
                break
    return statistics.median(times[-WINDOW:])


def _repeats(forward_ms: float) -> int:
    return max(1, ceil(SAMPLE_MS / max(forward_ms, 1e-3)))


def take_round(forward: Forward, timer: Timer, *, forward_ms: float) -> Samples:
    """Take one round of samples; the children before this one have cooled its caches, so warm first."""
    if forward_ms < LONG_MS:
        forward()
    least = SAMPLES_PER_ROUND if forward_ms < LONG_MS else 1
    repeats = _repeats(forward_ms)
    taken: list[Sample] = []
    start = time.perf_counter()
    while len(taken) < least or time.perf_counter() - start < ROUND_S:
        taken.append(timer.sample(forward, repeats))
    timer.rest()
    return Samples(
        latency_ms=[s.latency_ms for s in taken],
        warm_latency_ms=[s.warm_latency_ms for s in taken if s.warm_latency_ms is not None],
        cpu_time_ms=[s.cpu_time_ms for s in taken],
        clean=[s.clean for s in taken],
    )
