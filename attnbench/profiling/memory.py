"""Peak memory of one pass of this process, on a CPU or a CUDA device.

On a CPU it is what the operating system says, and that is only the model's where every large tensor has pages
of its own, which come and go with it. glibc keeps freed memory in a heap instead, up to 32 MiB a tensor, so
that its high-water mark is 1.6 to 2.4 times the tensors. `prepare_for_memory` ends that, at a price in time:
it belongs into a process that measures memory and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from attnbench.errors import UnsupportedError
from attnbench.profiling.kernel_memory import Machine
from attnbench.profiling.live_tensors import LiveTensors
from attnbench.profiling.protocol import Memory

_MIB = 2**20
_PROCESS = Path("/proc/self")
# of glibc's malloc.h; a tensor of 16 KiB and more gets pages, which rounds it up by at most 4 KiB
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
_SETTINGS = {_M_MMAP_THRESHOLD: 2**14, _M_TRIM_THRESHOLD: 0, _M_TOP_PAD: 0, _M_MMAP_MAX: 2**20}


def prepare_for_memory() -> None:
    """Give every large tensor that this process makes from now on pages of its own.

    Call it before the model is built. Raises UnsupportedError where there is no glibc to ask.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or not all(mallopt(setting, value) for setting, value in _SETTINGS.items()):
        raise UnsupportedError(
            "peak memory on a CPU needs glibc's mallopt, which this system has not; the planned memory "
            "(--measure memory-plan; in a suite: profile.measure) needs nothing of the kind"
        )


def peak_memory(run: Callable[[], object], device: torch.device) -> Memory:
    """Run a pass three times on a CPU, twice on a GPU, and return the peak of the second, MiB.

    The first makes what stays: AdamW's averages, buffers of threads and libraries, cuBLAS's workspace. On a
    CPU the third is counted by the sizes of its tensors (`live_mib`). Numbers of a CPU mean the model only
    after `prepare_for_memory`. Raises UnsupportedError where the system keeps no resettable high-water mark.
    """
    run()
    gc.collect()
    return _peak_on_cuda(run, device) if device.type == "cuda" else _peak_on_cpu(run)


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    reserved = torch.cuda.max_memory_reserved(device)
    return Memory(peak_mib=peak / _MIB, extra_mib=(peak - before) / _MIB, reserved_mib=reserved / _MIB)


def _peak_on_cpu(run: Callable[[], object]) -> Memory:
    _return_free_memory()
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the high-water mark falls to the present size
    except OSError as error:
        raise UnsupportedError(
            f"peak memory needs Linux's {_PROCESS}/clear_refs: {error.strerror or error}"
        ) from error
    before = _resident_mib("VmRSS")
    run()
    peak = _resident_mib("VmHWM")
    return Memory(peak_mib=peak, extra_mib=max(0.0, peak - before), live_mib=_live_mib(run))


def _live_mib(run: Callable[[], object]) -> float:
    """Peak of the tensors that a pass makes, by their sizes."""
    tensors = LiveTensors(Machine(device="cpu", threads=torch.get_num_threads()))
    with tensors:
        run()
    return tensors.peak / _MIB


def _return_free_memory() -> None:
    """Hand back what building the model freed, or the pass would fill it unseen."""
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _resident_mib(field: str) -> float:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024  # in kB
    raise UnsupportedError(f"peak memory needs {field} in {_PROCESS}/status")
