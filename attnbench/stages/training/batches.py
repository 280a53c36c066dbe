"""What a training step sees: examples, noise, times and labels, as a pure function of (seed, step).

Every draw is made for the whole batch, by every process and for every micro-batch alike, and then cut: how
a batch is divided changes no number in it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attnbench.diffusion.noise import derive_seed
from attnbench.diffusion.objective import Objective

if TYPE_CHECKING:
    from attnbench.stages.latents.model_space import TrainingSource

AHEAD = 2  # batches made ahead, a thread each: drawing and copying leave the interpreter lock alone


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to fetch: `indices` int64 [B], `flips` bool [B]."""

    indices: torch.Tensor
    flips: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A micro-batch on the device: the batch's examples from `first` on.

    `x0` and `noise` are [b, C, H, W], `times` [b] as the objective takes them, `labels` int64 [b] with
    dropped ones replaced by the null class.
    """

    first: int
    x0: torch.Tensor
    noise: torch.Tensor
    times: torch.Tensor
    labels: torch.Tensor


class BatchSchedule:
    """Epochs of shuffled examples, one after the other; a batch may span two of them.

    Nothing but the last permutation is kept, and only to save time: `at(step)` gives the same batch
    whatever was asked before, also by other threads.
    """

    def __init__(self, *, num_examples: int, batch_size: int, seed: int, flip: bool) -> None:
        self.num_examples, self.batch_size, self.seed, self.flip = num_examples, batch_size, seed, flip
        self._last = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """Return the batch of training step `step` (0 for the first)."""
        first = step * self.batch_size
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", step))
        coins = torch.rand(self.batch_size, generator=generator)
        return Batch(
            indices=self._positions(first, first + self.batch_size),
            flips=coins < 0.5 if self.flip else torch.zeros(self.batch_size, dtype=torch.bool),
        )

    def _positions(self, start: int, stop: int) -> torch.Tensor:
        """Return the examples at positions [start, stop) of the endless sequence of epochs."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.num_examples)
            part = self._permutation(epoch)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> torch.Tensor:
        kept, order = self._last  # read and written as a pair: another thread may be in another epoch
        if epoch != kept:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            order = torch.randperm(self.num_examples, generator=generator)
            self._last = epoch, order
        return order


@dataclass(frozen=True, kw_only=True)
class PartMaker:
    """Builds the parts of a step on the device; needs no model and no global generator."""

    schedule: BatchSchedule
    source: TrainingSource
    objective: Objective
    device: torch.device
    null_label: int
    class_dropout: float

    def make(self, step: int, slices: list[slice]) -> list[MicroBatch]:
        """Return the parts of step `step` (0 for the first) that `slices` cut out of its batch."""
        batch, size = self.schedule.at(step), self.schedule.batch_size
        generator = torch.Generator().manual_seed(derive_seed(self.schedule.seed, "train", step))
        noise = torch.randn(size, *self.source.shape, generator=generator)
        times = self.objective.draw_times(size, generator)
        dropped = torch.rand(size, generator=generator) < self.class_dropout
        labels = torch.where(dropped, self.null_label, self.source.labels[batch.indices])
        draws = self._posterior_draws(step)
        return [
            MicroBatch(
                first=cut.start,
                x0=self._move(
                    self.source.batch(
                        batch.indices[cut], batch.flips[cut], None if draws is None else draws[cut]
                    )
                ),
                noise=self._move(noise[cut]),
                times=self._move(times[cut]),
                labels=self._move(labels[cut]),
            )
            for cut in slices
        ]

    def _posterior_draws(self, step: int) -> torch.Tensor | None:
        """Return standard normal noise of a step's batch in one call, where the source draws its examples."""
        if not self.source.has_posterior:
            return None
        generator = torch.Generator().manual_seed(derive_seed(self.schedule.seed, "posterior", step))
        return torch.randn(self.schedule.batch_size, *self.source.shape, generator=generator)

    def _move(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def cut_batch(batch_size: int, accumulation: int, rank: int = 0, num_processes: int = 1) -> list[slice]:
    """Return the micro-batches of one process, in order.

    Micro-batch m of all processes together is the same piece of the batch for any number of processes.
    """
    size = batch_size // (accumulation * num_processes)
    starts = ((number * num_processes + rank) * size for number in range(accumulation))
    return [slice(start, start + size) for start in starts]


def prefetched(
    make: Callable[[int], list[MicroBatch]], first: int, last: int
) -> Iterator[tuple[int, list[MicroBatch], float]]:
    """Yield (step, its parts, seconds waited for them) for steps [first, last), in order.

    Threads build the parts of the next `AHEAD` steps while the caller computes on the present ones. An
    error of `make` is raised when its step is due. Closing the generator waits for the threads.
    """
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="batches") as pool:
        ahead = deque(pool.submit(make, step) for step in range(first, min(first + AHEAD, last)))
        for step in range(first, last):
            started = time.perf_counter()
            parts = ahead.popleft().result()
            waited = time.perf_counter() - started
            if step + AHEAD < last:
                ahead.append(pool.submit(make, step + AHEAD))
            yield step, parts, waited
