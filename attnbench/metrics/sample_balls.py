"""The balls that make the samples' manifold, kept so that the recall of a part of the samples can be told."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, final

import torch

from attnbench.metrics.smallest import merge_smallest

HOLDERS = 32  # balls remembered for each reference image
SPLITS = 100  # random divisions of the samples behind a standard error
COUNT_BITS = 15  # four counts of neighbours in 63 bits
ROWS_AT_A_TIME = 1024


class _Neighbours(NamedTuple):
    """The nearest samples of each sample, itself among them, from near to far, [M, kept] each."""

    squared: torch.Tensor
    names: torch.Tensor
    others: torch.Tensor
    """False where the neighbour is the sample itself."""


@final
class SampleBalls:
    """Radii of the samples' balls, and the standard error of recall over samples, from squared distances.

    Of each sample the nearest few others are kept with their names, and of each reference image the balls
    that hold it most firmly. In a part of the samples a ball grows to its k-th neighbour within that part,
    so these two lists tell which reference images are still inside, and thus the recall of the part.
    First the samples' own blocks, then those between the sets.
    """

    def __init__(self, reference: int, samples: int, neighbours: int, like: torch.Tensor) -> None:
        self.neighbours = neighbours
        # a quarter of the samples has k of 12 k + 8 neighbours but for a chance of less than a percent;
        # the nearest of all is the vector itself, at 0 to rounding
        kept = min(12 * neighbours + 8, samples - 1) + 1
        self._squared = like.new_full((samples, kept), torch.inf)
        self._names = torch.zeros(samples, kept, dtype=torch.int64, device=like.device)
        holders = min(HOLDERS, samples)
        self._share = like.new_full((reference, holders), torch.inf)  # of the way to the last kept neighbour
        self._holders = torch.zeros(reference, holders, dtype=torch.int64, device=like.device)

    def add_samples(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of squared distances within the samples, on or above the diagonal."""
        merge_smallest(self._squared, self._names, rows, columns.start, squared)
        if rows != columns:
            # selecting along strided columns is slower
            merge_smallest(self._squared, self._names, columns, rows.start, squared.T.contiguous())

    def radii(self, samples: slice) -> torch.Tensor:
        """Return the squared radii of some balls: the distance to the k-th nearest other sample."""
        return self._squared[samples].kthvalue(self.neighbours + 1, dim=1).values

    def add_cross(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of reference rows and sample columns; all blocks within the samples come first."""
        farthest = self._squared[columns].amax(dim=1).clamp(min=torch.finfo(squared.dtype).tiny)
        merge_smallest(self._share, self._holders, rows, columns.start, squared / farthest)

    def standard_error(self, *, seed: int = 0) -> float | None:
        """Return the standard error of recall over samples, the reference fixed; None for too few samples.

        The recalls of two disjoint halves of the samples are independent, so half the square of their
        difference has the variance of the recall of M / 2 samples as its mean; likewise for the quarters.
        Both are averaged over seeded random divisions. Of the variance at M one part falls as 1 / M and
        another not at all (whether one reference image is held is chance, however many balls are elsewhere),
        so a straight line in 1 / M through the two leads to it: 3 / 2 of that of halves less 1 / 2 of that of
        quarters, never below what 1 / M alone would give. Jackknife and bootstrap fail here, since leaving
        an image out or drawing it twice moves the k-th neighbour: they are 1.4 to 2 times too wide.
        `reports/coverage/` shows what the interval covers.
        Source: on variances from parts, D. Politis, J. Romano and M. Wolf, Subsampling, 1999.
        """
        count = len(self._squared)
        if count // 4 <= self.neighbours:
            return None
        generator = torch.Generator().manual_seed(seed)
        halves = quarters = 0.0
        for _ in range(SPLITS):
            quarter = torch.empty(count, dtype=torch.int64)
            quarter[torch.randperm(count, generator=generator)] = torch.arange(count) * 4 // count
            of_halves, of_quarters = self.recalls(quarter.to(self._squared.device))
            halves += float(of_halves.var()) / SPLITS
            quarters += float(of_quarters.var()) / SPLITS
        return float(max(halves / 2, 1.5 * halves - 0.5 * quarters) ** 0.5)

    def recalls(self, quarter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the recalls of two halves [2] and four quarters [4] of the samples, each by itself, float64.

        `quarter`, int64 [M], says which quarter a sample is in; 0 and 1 are the first half.
        """
        near = self._neighbours
        # four counts in one number, so that one pass over the neighbours serves all parts
        members = (1 << (COUNT_BITS * quarter))[near.names] * near.others
        closer = torch.nn.functional.pad(members.cumsum(dim=1), (1, 0)).flatten()
        counts = closer[self._holders * (near.names.shape[1] + 1) + self._ranks]
        own = quarter[self._holders]
        in_quarter, in_sibling = (
            (counts >> (COUNT_BITS * which)) & (2**COUNT_BITS - 1) for which in (own, own ^ 1)
        )
        known = self._ranks < near.names.shape[1]
        held = known & (in_quarter + in_sibling < self.neighbours)
        halves = [(held & (own // 2 == half)).any(dim=1) for half in range(2)]
        held = known & (in_quarter < self.neighbours)
        quarters = [(held & (own == part)).any(dim=1) for part in range(4)]
        return torch.stack(halves).double().mean(dim=1), torch.stack(quarters).double().mean(dim=1)

    @cached_property
    def _neighbours(self) -> _Neighbours:
        squared, order = self._squared.sort(dim=1)
        names = self._names.gather(1, order)
        own = torch.arange(len(names), device=names.device)[:, None]
        return _Neighbours(squared, names, names != own)

    @cached_property
    def _ranks(self) -> torch.Tensor:
        """How many neighbours of a ball's middle lie closer to it than the reference image, [N, holders]."""
        near = self._neighbours.squared
        parts = []
        for share, holders in zip(
            self._share.split(ROWS_AT_A_TIME), self._holders.split(ROWS_AT_A_TIME), strict=True
        ):
            distances = near[holders]  # [n, holders, kept]
            squared = share * distances[..., -1].clamp(min=torch.finfo(share.dtype).tiny)
            squared *= (
                1 - 4 * torch.finfo(share.dtype).eps
            )  # the rim is inside, whatever the division rounded
            parts.append(torch.searchsorted(distances, squared[..., None])[..., 0])
        return torch.cat(parts)
