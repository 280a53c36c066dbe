"""Chunked gated linear attention against the token loop, forward and forward plus backward, on the CPU.

    python reports/gated-linear/measure.py [--threads 1,2] [--rounds 15] [--tokens 1024] [--chunks 32,64]

Prints medians of interleaved rounds and how many times faster than the token loop each chunk size is. Sizes:
one image of 1024 tokens, 6 heads, keys 32 and values 64 wide (DiG-S), forget gates drawn as DiG's start (mean
log decay -0.044). The loop reads its tokens from one unbind, so that its backward pass is linear in N too.

In a round each form runs CALLS times in a row and the first call is not counted, so that none pays for the
cache its predecessor emptied. glibc keeps freed memory (set before torch starts): otherwise a form pays
page faults, or none, by the accident of what lies at the top of the heap.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in KEEP_FREED_MEMORY.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_FREED_MEMORY})

import torch  # noqa: E402  (after the allocator's settings)
import torch.nn.functional as F  # noqa: E402

from attnbench.layers.gated_linear import gated_linear_attention  # noqa: E402

HEADS, KEY_DIM, VALUE_DIM = 6, 32, 64
CALLS = 3


def contenders(tokens: int, chunks: list[int]) -> dict[tuple[str, str], Callable[[], object]]:
    """Return every (direction, form) as a function of no arguments."""
    q, k, gate = (torch.randn(1, HEADS, tokens, KEY_DIM) for _ in range(3))
    v, grad = (torch.randn(1, HEADS, tokens, VALUE_DIM) for _ in range(2))
    inputs = [z.requires_grad_() for z in (q, k, v, F.logsigmoid(0.2 * gate) / 16)]
    options = {"token loop": {"form": "recurrent"}} | {f"chunks of {c}": {"chunk_size": c} for c in chunks}

    @torch.no_grad()
    def forward(form: str) -> object:
        return gated_linear_attention(*inputs, **options[form])

    def both(form: str) -> object:
        return torch.autograd.grad(gated_linear_attention(*inputs, **options[form]), inputs, grad)

    directions = {"forward": forward, "forward+backward": both}
    return {
        (direction, form): lambda run=run, form=form: run(form)
        for direction, run in directions.items()
        for form in options
    }


def measure(threads: int, rounds: int, tokens: int, chunks: list[int]) -> dict[tuple[str, str], float]:
    """Return the median of each contender in ms, rounds interleaved, two warm-up rounds dropped."""
    torch.set_num_threads(threads)
    runs = contenders(tokens, chunks)
    times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            for call in range(CALLS):
                start = time.perf_counter()
                run()
                if call:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[2 * (CALLS - 1) :]) for name, values in times.items()}


def main() -> None:
    """Print one JSON line per thread count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--chunks", default="32,64")
    asked = parser.parse_args()
    chunks = [int(size) for size in asked.chunks.split(",")]
    for threads in map(int, asked.threads.split(",")):
        row: dict[str, object] = {"threads": threads, "torch": torch.__version__, "tokens": asked.tokens}
        median_ms = measure(threads, asked.rounds, asked.tokens, chunks)
        for direction in ("forward", "forward+backward"):
            found = {form: ms for (way, form), ms in median_ms.items() if way == direction}
            loop = found["token loop"]
            row[f"{direction} ms"] = {form: round(ms, 2) for form, ms in found.items()}
            row[f"{direction} times faster"] = {form: round(loop / ms, 1) for form, ms in found.items()}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
