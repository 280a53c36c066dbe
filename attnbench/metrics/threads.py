"""Work on many images in as many threads as torch takes, for what leaves the interpreter lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from attnbench.devices import available_cores

Item = TypeVar("Item")
Found = TypeVar("Found")
PARTS = 4  # of a thread's work, so that one slow image does not let the others wait


def num_threads() -> int:
    """Return how many threads work on images: torch's own number, at most the cores there are.

    Whoever shares out a machine (OMP_NUM_THREADS, cases side by side) tells torch, so that is the one
    number to keep to.
    """
    return max(1, min(torch.get_num_threads(), available_cores()))


def each(function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """Return what a function gives for each item, in order; what it raises for the first that fails.

    Pillow's decoders and resizing, zlib and hashlib leave the interpreter lock. With one thread or item no
    other is started. After an error or Ctrl-C no further part is begun.
    """
    threads = min(num_threads(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    size = -(-len(items) // (PARTS * threads))  # a task costs as much as hashing a small image: some at once
    parts = [items[at : at + size] for at in range(0, len(items), size)]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda part: [function(item) for item in part], parts)
        return [value for values in found for value in values]


def in_advance(items: Iterable[Item], count: int) -> Generator[Item]:
    """Yield items in order, up to `count` of which another thread makes meanwhile; 0: none, in this thread.

    What making one raises is raised in its place. Whoever stops early (an error, Ctrl-C) waits for the one
    that is being made, and no other is begun.
    """
    if count == 0:
        yield from items
        return
    source = iter(items)
    with ThreadPoolExecutor(1) as maker:
        try:
            waiting = deque[Future[Item | None]](maker.submit(next, source, None) for _ in range(count))
            while (item := waiting.popleft().result()) is not None:
                waiting.append(maker.submit(next, source, None))
                yield item
        finally:
            maker.shutdown(wait=False, cancel_futures=True)
