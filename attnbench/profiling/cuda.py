"""On a CUDA device: timing by events, replays of a captured pass, and which attention kernels ran."""

from __future__ import annotations

import contextlib
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from attnbench.errors import UnsupportedError
from attnbench.profiling.conditions import waited_s
from attnbench.profiling.latency import Sample

FLUSH_BYTES_LEAST = 2**24
_WARM_PASSES = 3  # lazy initialisation (libraries, autotuning, workspaces) is not allowed during capture
_TORCH = str(Path(torch.__file__).parent)


class CudaTimer:
    """Times by device events: one pass alone with a flushed L2 cache, then passes back to back.

    Cold is the wait of who asks for one pass: the flush is over, the device idle and the host about to
    launch the first kernel when it begins, so gaps in which the device waits for launches are in it. Warm
    is a pass's share of `repeats` launched one after the other: the host runs ahead, so launches count only
    where they take longer than the computing. `watch` is called while the device still works on those.
    CPU time is that of launching: the host sleeps, not spins, while it waits.
    """

    def __init__(self, device: torch.device, watch: Callable[[], object] | None = None) -> None:
        self.device, self.watch = device, watch
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        # four times the cache: its replacement is not strictly the oldest first
        self.flush = torch.empty(max(4 * l2_bytes, FLUSH_BYTES_LEAST), dtype=torch.int8, device=device)

    def sample(self, forward: Callable[[], object], repeats: int) -> Sample:
        """Time one cold pass, then `repeats` warm ones together."""
        waited, cpu_s, start = waited_s(), time.process_time(), time.perf_counter()
        self.flush.zero_()
        torch.cuda.synchronize(self.device)  # or launches would hide behind the flush, some of them
        cold_ms = self._elapsed_ms(forward, 1, None)
        warm_ms = self._elapsed_ms(forward, repeats, self.watch)
        elapsed_s, waited_after = time.perf_counter() - start, waited_s()
        return Sample(
            latency_ms=cold_ms,
            warm_latency_ms=warm_ms,
            cpu_time_ms=1e3 * (time.process_time() - cpu_s) / (repeats + 1),
            waited_share=None
            if waited is None or waited_after is None
            else (waited_after - waited) / elapsed_s,
        )

    def _elapsed_ms(
        self, forward: Callable[[], object], repeats: int, watch: Callable[[], object] | None
    ) -> float:
        stream = torch.cuda.current_stream(self.device)  # of this device: the process's may be another
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        start.record(stream)
        for _ in range(repeats):
            forward()
        end.record(stream)
        if watch is not None:
            watch()
        end.synchronize()
        return start.elapsed_time(end) / repeats

    def rest(self) -> None:
        """Return cached blocks to the device: the other children share its memory."""
        torch.cuda.empty_cache()


def captured(run: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Capture a pass as a CUDA graph; return what replays it and gives the (same) tensor of its output.

    Three passes run before, on the stream of the capture. Raises UnsupportedError where the pass does
    what a capture forbids, such as waiting for the device; it says where. Then end the process: torch may
    be left on the capture's stream.
    """
    stream = torch.cuda.Stream(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_PASSES):
                run()
        torch.cuda.synchronize(device)
        try:
            with torch.cuda.graph(graph, stream=stream):
                output = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnsupportedError(_why_not_captured(error)) from error

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _why_not_captured(error: BaseException) -> str:
    """Say what failed first and where; leaving a broken capture raises once more, which says neither."""
    while error.__context__ is not None:
        error = error.__context__
    what = str(error).strip().split("\n")[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_of_model(frame.filename)]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return f"no CUDA graph of this pass: {what}{where}; profile it without cuda_graphs"


def _is_of_model(filename: str) -> bool:
    return not filename.startswith((_TORCH, "<")) and filename != __file__


_BY_NAME = (  # of operators, and of kernels: torch's, xformers', flash-attn's, inductor's
    ("cudnn", r"_cudnn_attention|^cudnn\w*_(sdpa|fmha|mha)"),
    ("efficient", r"_efficient_attention|\bfmha_cutlass[FB]|xformers::efficient_attention"),
    (
        "flash",
        r"_flash_attention|\bflash_(fwd|bwd)|\bFlashAttn(Fwd|Bwd)|flash_attncute|flash_attn::|xformers_flash",
    ),
    ("flex", r"triton_tem_fused_(flex_attention|\d)|^flex_attention"),
    ("natten", r"natten|\bfna_"),
    ("math", r"_scaled_dot_product_attention_math"),
    ("grouped_mm", r"aten::_grouped_mm"),
    ("bmm", r"aten::(baddbmm|bmm)"),
    ("softmax", r"aten::_softmax"),
)
_INSIDE_MATH = ("bmm", "softmax")
WAITS = "waits for the device"
_WAITED = "called a synchronizing CUDA operation"


def attention_kernels(run: Callable[[], object]) -> list[str]:
    """Run a pass once and return the names of the attention kernels it took.

    `cudnn`, `flash`, `efficient` (CUTLASS), `flex`, `natten`: fused ones; `math`: torch's softmax attention
    without one; `bmm`, `softmax`, `grouped_mm`: what the model calls itself; last, `waits for the device`,
    where the host needs a number from it in between. Read from the operators, which say what was chosen and
    cost later passes nothing. Give it the pass itself: a captured graph's replay has no operators.
    """
    with _waits_noted() as waits, torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
        run()
    return name_kernels(event.name for event in profile.events() or ()) + ([WAITS] if waits() else [])


@contextlib.contextmanager
def _waits_noted() -> Iterator[Callable[[], bool]]:
    """Have torch warn when the host waits for the device; yield what says whether it did."""
    if not torch.cuda.is_available():
        yield lambda: False
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: any(_WAITED in str(warning.message) for warning in caught)
        finally:
            torch.cuda.set_sync_debug_mode(before)


def device_kernels(run: Callable[[], object]) -> list[str]:
    """Run a pass once and return the full names of its kernels on the device, each once, in order.

    After all timing only: it needs CUPTI, which stays in the process and slows later launches
    (pytorch issue 144455).
    """
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    on_device = (event.name for event in profile.events() or () if event.device_type.name == "CUDA")
    return list(dict.fromkeys(on_device))


def name_kernels(names: Iterable[str]) -> list[str]:
    """Return which attention kernels the names of operators or kernels tell of, by their short names.

    >>> name_kernels(["aten::linear", "aten::_scaled_dot_product_flash_attention", "ampere_sgemm_32x128_tn"])
    ['flash']
    """
    seen = set(names)
    found = [short for short, pattern in _BY_NAME if any(re.search(pattern, name) for name in seen)]
    return [short for short in found if not ("math" in found and short in _INSIDE_MATH)]
