"""Manifolds of balls around features: radii to the k-th neighbour, and who lies inside some ball."""

from __future__ import annotations

from typing import final

import torch

from attnbench.errors import UserInputError
from attnbench.metrics.sample_balls import SampleBalls


@final
class Manifold:
    """Radii of both sets and membership in the other's manifold, from blocks of squared distances.

    First both sets' own blocks, then the blocks between them. A ball's radius is the distance to the k-th
    nearest other vector, its rim included (`<=`).
    """

    def __init__(self, reference: int, samples: int, neighbours: int, like: torch.Tensor) -> None:
        smaller = min(reference, samples)
        if not 1 <= neighbours < smaller:
            raise UserInputError(
                f"precision and recall: {neighbours} neighbours in sets of {reference} and {samples} images; "
                f"choose 1 ... {smaller - 1}"
            )
        # the nearest of all is the vector itself, at 0 to rounding, so the k-th other is number k + 1
        self.reference_nearest = like.new_full((reference, neighbours + 1), torch.inf)
        self.sample_balls = SampleBalls(reference, samples, neighbours, like)
        self.reference_inside, self.sample_inside = (
            torch.zeros(n, dtype=torch.bool, device=like.device) for n in (reference, samples)
        )

    def add_reference(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of squared distances within the reference, on or above the diagonal."""
        _merge(self.reference_nearest, rows, squared)
        if rows != columns:
            _merge(self.reference_nearest, columns, squared.T.contiguous())  # strided columns are slower

    def add_samples(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of squared distances within the samples, on or above the diagonal."""
        self.sample_balls.add_samples(rows, columns, squared)

    def add_cross(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of reference rows and sample columns; all blocks within the sets come first."""
        reference_radii = self.reference_nearest[rows].amax(dim=1, keepdim=True)
        self.sample_inside[columns] |= (squared <= reference_radii).any(dim=0)
        self.reference_inside[rows] |= (squared <= self.sample_balls.radii(columns)).any(dim=1)
        self.sample_balls.add_cross(rows, columns, squared)


def _merge(nearest: torch.Tensor, rows: slice, squared: torch.Tensor) -> None:
    """Merge a block of squared distances into the smallest of each row."""
    kept = nearest.shape[1]
    found = squared.topk(min(kept, squared.shape[1]), dim=1, largest=False, sorted=False).values
    both = torch.cat([nearest[rows], found], dim=1)
    nearest[rows] = both.topk(kept, dim=1, largest=False, sorted=False).values
