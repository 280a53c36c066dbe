"""Forward plus backward of a routed projection against one dense projection of the same size, on the CPU.

    python reports/routed-projection/measure.py [--threads 1,2] [--rounds 40]

Prints medians of interleaved rounds and the ratio to dense, for the package's operator and for the naive form
that computes all experts. Sizes: 2048 tokens, width 384, 5 projectors, tokens routed at random.

In a round each form runs CALLS times in a row and the first call is not counted, so that none pays for the
cache its predecessor emptied. glibc keeps freed memory (set before torch starts): otherwise a form pays some
700 page faults a call, or none, by the accident of what lies at the top of the heap.
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

from attnbench.layers import routed_projection  # noqa: E402

TOKENS, WIDTH, PROJECTORS = 2048, 384, 5
CALLS = 4


def contenders() -> tuple[dict[str, Callable[[], None]], Callable[[], None]]:
    """Return the three forms, and what clears the gradients between them (outside the timed part)."""
    x = torch.randn(TOKENS, WIDTH, requires_grad=True)
    bank = torch.randn(PROJECTORS, WIDTH, WIDTH, requires_grad=True)
    dense_weight = torch.randn(WIDTH, WIDTH, requires_grad=True)
    expert = torch.randint(0, PROJECTORS, (TOKENS, 1))
    grad = torch.randn(TOKENS, WIDTH)

    def clear() -> None:
        x.grad = bank.grad = dense_weight.grad = None

    def dense() -> None:
        (x @ dense_weight).backward(grad)

    def routed() -> None:
        routed_projection(x, bank, expert).view(TOKENS, WIDTH).backward(grad)

    def all_experts() -> None:
        every = torch.einsum("tc,ecf->tef", x, bank)
        every.gather(1, expert[..., None].expand(-1, -1, WIDTH))[:, 0].backward(grad)

    return {"dense": dense, "routed": routed, "all experts": all_experts}, clear


def measure(threads: int, rounds: int) -> dict[str, float]:
    """Return the median of each form in ms, rounds interleaved, five warm-up rounds dropped."""
    torch.set_num_threads(threads)
    forms, clear = contenders()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds + 5):
        for name, form in forms.items():
            for call in range(CALLS):
                clear()
                start = time.perf_counter()
                form()
                if call:
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values[5 * (CALLS - 1) :]) for name, values in times.items()}


def main() -> None:
    """Print one JSON line per thread count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=40)
    asked = parser.parse_args()
    for threads in map(int, asked.threads.split(",")):
        median_ms = measure(threads, asked.rounds)
        ratio = {name: round(value / median_ms["dense"], 3) for name, value in median_ms.items()}
        shown = {name: round(value, 3) for name, value in median_ms.items()}
        print(
            json.dumps({"threads": threads, "torch": torch.__version__, "median_ms": shown, "ratio": ratio})
        )


if __name__ == "__main__":
    main()
