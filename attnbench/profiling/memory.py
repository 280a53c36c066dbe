"""Peak memory of one forward pass of this process, on a CPU or a CUDA device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from attnbench.errors import UnsupportedError
from attnbench.profiling.protocol import Memory

_MIB = 2**20
_PROCESS = Path("/proc/self")


def peak_memory(forward: Callable[[], object], device: torch.device) -> Memory:
    """Run `forward` once and return its peak, MiB.

    Raises UnsupportedError where the operating system keeps no resettable high-water mark.
    """
    gc.collect()
    return _peak_on_cuda(forward, device) if device.type == "cuda" else _peak_on_cpu(forward)


def _peak_on_cuda(forward: Callable[[], object], device: torch.device) -> Memory:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    reserved = torch.cuda.max_memory_reserved(device)
    return Memory(peak_mib=peak / _MIB, extra_mib=(peak - before) / _MIB, reserved_mib=reserved / _MIB)


def _peak_on_cpu(forward: Callable[[], object]) -> Memory:
    _start_libraries()
    _return_free_memory()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the high-water mark falls to the present size
    except OSError as error:
        raise UnsupportedError(
            f"peak memory needs Linux's {_PROCESS}/clear_refs: {error.strerror or error}"
        ) from error
    before = _resident_mib("VmRSS")
    forward()
    peak = _resident_mib("VmHWM")
    return Memory(peak_mib=peak, extra_mib=max(0.0, peak - before))


def _start_libraries() -> None:
    """Let threads and libraries take their buffers now, so that they are not the model's."""
    x = torch.ones(1, 8, 8, 8)
    F.conv2d(x, torch.ones(8, 8, 3, 3))
    torch.matmul(x, x)


def _return_free_memory() -> None:
    """Hand back what building the model freed, or the forward pass would fill it unseen."""
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _resident_mib(field: str) -> float:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024  # in kB
    raise UnsupportedError(f"peak memory needs {field} in {_PROCESS}/status")
