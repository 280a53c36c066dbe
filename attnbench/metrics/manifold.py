"""Manifolds of balls around features: radii to the k-th neighbour, and who lies inside some ball."""

from __future__ import annotations

from typing import final

import torch

from attnbench.errors import UserInputError


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
        shapes = [(reference, neighbours + 1), (samples, neighbours + 1)]
        self.reference_nearest, self.sample_nearest = (like.new_full(s, torch.inf) for s in shapes)
        self.reference_inside, self.sample_inside = (
            torch.zeros(n, dtype=torch.bool, device=like.device) for n in (reference, samples)
        )

    def add_reference(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of squared distances within the reference, on or above the diagonal."""
        _add_within(self.reference_nearest, rows, columns, squared)

    def add_samples(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of squared distances within the samples, on or above the diagonal."""
        _add_within(self.sample_nearest, rows, columns, squared)

    def add_cross(self, rows: slice, columns: slice, squared: torch.Tensor) -> None:
        """Take a block of reference rows and sample columns; all blocks within the sets come first."""
        reference_radii = self.reference_nearest[rows].amax(dim=1, keepdim=True)
        sample_radii = self.sample_nearest[columns].amax(dim=1)
        self.sample_inside[columns] |= (squared <= reference_radii).any(dim=0)
        self.reference_inside[rows] |= (squared <= sample_radii).any(dim=1)


def _add_within(nearest: torch.Tensor, rows: slice, columns: slice, squared: torch.Tensor) -> None:
    """Merge a block of squared distances into the smallest of each row and, off the diagonal, column."""
    _merge(nearest, rows, squared)
    if rows != columns:
        _merge(nearest, columns, squared.T.contiguous())  # selecting along strided columns is slower


def _merge(nearest: torch.Tensor, rows: slice, squared: torch.Tensor) -> None:
    kept = nearest.shape[1]
    found = squared.topk(min(kept, squared.shape[1]), dim=1, largest=False, sorted=False).values
    both = torch.cat([nearest[rows], found], dim=1)
    nearest[rows] = both.topk(kept, dim=1, largest=False, sorted=False).values
