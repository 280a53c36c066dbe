"""How near a pass comes to what its machine can do: the roofline of its multiply-adds and bytes.

Source: Williams, Waterman and Patterson 2009, Roofline: an insightful visual performance model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from attnbench.profiling.protocol import Ceilings
from attnbench.profiling.rows import Bound
from attnbench.specs import Precision

_BUDGET_S = 0.2  # for each of the three measurements, after its first call
_LONG_S = 0.02  # a product that takes this long is large enough: starting it costs below 1 %
_SIDES = (512, 1024, 2048, 4096, 8192)
_LEAST_BYTES, _MOST_BYTES = 2**26, 2**29
_CACHES = 4  # STREAM's rule: arrays of at least four times the last cache


def measure_ceilings(device: str, precision: Precision, threads: int) -> Ceilings:
    """Measure both ceilings; takes about a second, and sets torch's threads: run it in a child process.

    Best of several runs: what else the machine does can only lower them. On a CPU the memory is the main
    memory; a pass that lives in the caches can be faster than its roofline.
    """
    torch.set_num_threads(threads)
    place = torch.device(device)
    with torch.inference_mode():
        return Ceilings(
            device=device,
            precision=precision,
            threads=threads,
            macs_per_s=_macs_per_s(place, torch.bfloat16 if precision == "bf16" else torch.float32),
            bytes_per_s=_bytes_per_s(place),
        )


def roofline(macs: int, bytes_moved: int, latency_ms: float, ceilings: Ceilings) -> tuple[float, Bound]:
    """Return the least time of a pass over the time it took, and what bounds that least time.

    Multiply-adds and bytes of the whole pass, all its images. The least time is the longer of both at the
    ceilings' rates: arithmetic and memory at work together. Raises ValueError on a time that is not positive.

    >>> machine = Ceilings(device="cpu", precision="fp32", threads=1, macs_per_s=1e9, bytes_per_s=1e9)
    >>> roofline(10**6, 10**5, 2.0, machine)
    (0.5, 'arithmetic')
    """
    if not latency_ms > 0:
        raise ValueError(f"a pass takes time, got {latency_ms} ms")
    arithmetic_s, memory_s = macs / ceilings.macs_per_s, bytes_moved / ceilings.bytes_per_s
    bound: Bound = "arithmetic" if arithmetic_s >= memory_s else "memory"
    return max(arithmetic_s, memory_s) / (1e-3 * latency_ms), bound


def _macs_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate of a square product, of a side that makes it long enough to time."""
    for side in _SIDES:
        a, b, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(3))
        product = _call(torch.mm, a, b, out=out)
        if side == _SIDES[-1] or _timed(product, device) >= _LONG_S:
            break
    return side**3 / _best_s(product, device)


def _bytes_per_s(device: torch.device) -> float:
    num = min(_MOST_BYTES, max(_LEAST_BYTES, _CACHES * _cache_bytes(device)))
    source = torch.ones(num // 4, device=device)
    target = torch.empty_like(source)
    copying = 2 * num / _best_s(_call(target.copy_, source), device)
    reading = num / _best_s(_call(torch.sum, source), device)
    return max(copying, reading)


def _cache_bytes(device: torch.device) -> int:
    """Return the size of the last cache, 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    name = "SC_LEVEL3_CACHE_SIZE"
    return max(0, os.sysconf(name)) if name in getattr(os, "sysconf_names", {}) else 0


def _call(function: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], object]:
    return lambda: function(*args, **kwargs)


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest of at least three runs, after one that pays for first touches."""
    _timed(run, device)
    end = time.perf_counter() + _BUDGET_S
    times = [_timed(run, device) for _ in range(3)]
    while time.perf_counter() < end:
        times.append(_timed(run, device))
    return min(times)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
