"""Which examples a training step sees, as a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.diffusion.noise import derive_seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to fetch: `indices` int64 [B], `flips` bool [B], `noise_keys` int64 [B]."""

    indices: torch.Tensor
    flips: torch.Tensor
    noise_keys: torch.Tensor


class BatchSchedule:
    """Epochs of shuffled examples, one after the other; a batch may span two of them.

    Nothing but the last permutation is kept, and only to save time: `at(step)` gives the same batch
    whatever was asked before.
    """

    def __init__(self, *, num_examples: int, batch_size: int, seed: int, flip: bool) -> None:
        self.num_examples, self.batch_size, self.seed, self.flip = num_examples, batch_size, seed, flip
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, step: int) -> Batch:
        """Return the batch of training step `step` (0 for the first)."""
        first = step * self.batch_size
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", step))
        coins = torch.rand(self.batch_size, generator=generator)
        return Batch(
            indices=self._positions(first, first + self.batch_size),
            flips=coins < 0.5 if self.flip else torch.zeros(self.batch_size, dtype=torch.bool),
            noise_keys=torch.arange(first, first + self.batch_size),
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
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, torch.randperm(self.num_examples, generator=generator)
        return self._order
