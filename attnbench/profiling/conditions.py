"""What the machine does meanwhile: waiting for cores, stolen time, load, clocks. Linux alone says all."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from pathlib import Path

from attnbench.results import cpu_name, versions

COMPUTING = ("torch", "numpy", "attnbench")
"""Packages whose version a row tells of; the file of a profile has all of them."""
_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_CPU = Path("/sys/devices/system/cpu/cpu0")
_STOLEN = 8  # of the fields of /proc/stat, after the name: user nice system idle iowait irq softirq steal


def waited_s() -> float | None:
    """Return how long this process's threads have waited for a core although they could run; None: unknown.

    Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat, the second number (ns).
    """
    total = 0
    try:
        for task in os.listdir(_TASKS):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total += int((_TASKS / task / "schedstat").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return 1e-9 * total if total or (_TASKS.parent / "schedstat").exists() else None


def stolen_s() -> float:
    """Return the time that the host of a virtual machine gave to others, mean over its cores; 0: unknown.

    Source: proc_stat(5).
    """
    try:
        with _STAT.open() as file:
            fields = file.readline().split()
        return int(fields[_STOLEN]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)
    except (OSError, IndexError, ValueError):
        return 0.0


@functools.cache
def machine() -> tuple[str, dict[str, str]]:
    """Return the CPU's name, and the versions of Python and of what computes."""
    return cpu_name(), {"python": platform.python_version(), **versions(COMPUTING)}


def load() -> float | None:
    """Return the load average over a minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def governor() -> str:
    """Return the CPU frequency governor; empty where there is none to read."""
    try:
        return (_CPU / "cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""


def throttle_count() -> int | None:
    """Return how often core 0 has been slowed down for its heat; None where the system does not say."""
    try:
        return int((_CPU / "thermal_throttle/core_throttle_count").read_text())
    except (OSError, ValueError):
        return None
