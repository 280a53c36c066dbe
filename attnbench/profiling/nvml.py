"""What NVIDIA's management library says of a GPU: energy, clock, and why the clock is held down."""

from __future__ import annotations

import importlib
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from attnbench.errors import UnsupportedError
from attnbench.profiling.protocol import Energy

WINDOW_S = 1.0  # at least: the counter moves every 20 to 100 ms
IDLE_S = 0.5
RAMP_S = 0.25  # running before the window opens: clocks and voltage rise
CHUNK_S = 0.01  # how often the counter is read: its steps are found to about so much
STEP_S = 0.1  # the longest step of the counter
RESOLUTION = 0.05  # the window is that much longer than what a step's place in time is known to
LIMIT_S = 20.0  # for a counter that stands still

_HELD = {  # nvml.h, nvmlClocksEventReason*; GpuIdle (1) is none
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "power brake",
    0x100: "display clocks",
}


class Meter(Protocol):
    """What is read of one GPU."""

    def energy_mj(self) -> int:
        """Energy since the driver was loaded, mJ, of the whole board."""
        ...

    def clock_mhz(self) -> int:
        """Clock of the multiprocessors."""
        ...

    def reasons(self) -> int:
        """Bits of nvmlClocksEventReason."""
        ...


class NvmlMeter:
    """One of torch's CUDA devices as NVML sees it, found by UUID: CUDA_VISIBLE_DEVICES renumbers torch's.

    Raises UnsupportedError without the package nvidia-ml-py, the driver's library, or the device in it.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise UnsupportedError(
                f"energy and clocks of a GPU need NVML: {error}; pip install 'attnbench[gpu]'"
            ) from error
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        self._ask("nvmlInit")
        try:
            self._handle = self._ask("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
        except UnsupportedError:  # a slice of a GPU has a UUID of its own
            self._handle = self._ask("nvmlDeviceGetHandleByUUID", f"MIG-{uuid}")

    def energy_mj(self) -> int:
        """Energy since the driver was loaded, mJ (Volta and newer; not of a MIG slice)."""
        return int(self._ask("nvmlDeviceGetTotalEnergyConsumption", self._handle))

    def clock_mhz(self) -> int:
        """Clock of the multiprocessors."""
        return int(self._ask("nvmlDeviceGetClockInfo", self._handle, self._nvml.NVML_CLOCK_SM))

    def reasons(self) -> int:
        """Bits of nvmlClocksEventReason."""
        return int(self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._handle))

    def _ask(self, function: str, *arguments: object) -> Any:
        try:
            return getattr(self._nvml, function)(*arguments)
        except (self._nvml.NVMLError, AttributeError) as error:  # the latter: a package older than 2023
            raise UnsupportedError(f"NVML's {function}: {error}") from error


@dataclass
class Clocks:
    """Readings of a GPU's clock while it works; give `read` to CudaTimer as `watch`.

    Where NVML refuses there are no (more) readings and `reason` says why: no row fails for want of a clock.
    """

    meter: Meter | None
    reason: str = ""
    mhz: list[int] = field(default_factory=list)
    held: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, device: torch.device) -> Clocks:
        """Return the readings, none yet, of one of torch's CUDA devices."""
        try:
            return cls(NvmlMeter(device))
        except UnsupportedError as error:
            return cls(None, str(error))

    def read(self) -> None:
        """Take one reading."""
        if self.meter is None:
            return
        try:
            mhz, bits = self.meter.clock_mhz(), self.meter.reasons()
        except UnsupportedError as error:
            self.meter, self.reason = None, str(error)
            return
        self.mhz.append(mhz)
        self.held.update(words for bit, words in _HELD.items() if bits & bit)

    @property
    def clock_mhz(self) -> float | None:
        """Median clock; None before a reading."""
        return statistics.median(self.mhz) if self.mhz else None

    @property
    def throttled(self) -> str:
        """What held the clock down and in how many readings, e.g. `power cap in 3 of 20`; empty: nothing."""
        return ", ".join(f"{words} in {count} of {len(self.mhz)}" for words, count in self.held.most_common())


def measure_energy(
    run: Callable[[], object],
    images: int,
    meter: Meter,
    *,
    synchronize: Callable[[], object],
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Energy:
    """Run passes of so many images back to back and return their energy per image.

    The counter moves in steps of 20 to 100 ms, so the window goes from one of its steps to another, and the
    passes in between are counted, not those in a round second. Takes 2 to 4 s and the time of a few passes.
    Raises UnsupportedError where the counter does not move.
    """
    synchronize()
    idle_j, idle_s, _, _ = _between_steps(lambda: sleep(CHUNK_S), meter, now, WINDOW_S / 10, IDLE_S)
    run()
    synchronize()
    started = now()
    run()
    synchronize()
    repeats = max(1, round(CHUNK_S / max(now() - started, 1e-6)))

    def chunk() -> None:
        for _ in range(repeats):
            run()
        synchronize()

    energy_j, seconds, chunks, longest_s = _between_steps(chunk, meter, now, RAMP_S, WINDOW_S)
    num = chunks * repeats * images
    return Energy(
        energy_j=energy_j / num,
        power_w=energy_j / seconds,
        idle_w=idle_j / idle_s,
        seconds=seconds,
        images=num,
        resolution=min(longest_s, STEP_S) / seconds,
    )


def _between_steps(
    act: Callable[[], object], meter: Meter, now: Callable[[], float], before_s: float, least_s: float
) -> tuple[float, float, int, float]:
    """Act again and again; return J, s and acts between two steps of the counter, and the longest act.

    The first step comes after `before_s`, the second `least_s` or more later. At either end a step is seen
    too late: by one act at most, or by the counter's step where an act is longer.
    """
    start = now()
    last, first, acts, longest, read_at = meter.energy_mj(), None, 0, 0.0, start
    while True:
        act()
        value, at = meter.energy_mj(), now()
        acts, longest, read_at = acts + 1, max(longest, at - read_at), at
        if value != last and at - start >= before_s:
            if first is None:
                first, acts, longest, start = (value, at), 0, 0.0, at
            elif at - first[1] >= max(least_s, min(longest, STEP_S) / RESOLUTION):
                return (value - first[0]) / 1e3, at - first[1], acts, longest
        elif at - start > LIMIT_S:
            raise UnsupportedError(f"NVML's energy counter did not move for {at - start:.0f} s")
        last = value
