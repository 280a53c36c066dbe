"""The kernel distance: seeded subsets, their kernel sums, and each sample's part in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch

from attnbench.errors import UserInputError


def draw_subsets(
    n: int, m: int, *, subsets: int, size: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `subsets` pairs of `size` positions each in sets of n and m, drawn without replacement.

    Raises UserInputError when a subset is larger than a set or has fewer than two vectors.
    """
    if not 2 <= size <= min(n, m):
        raise UserInputError(
            f"kernel distance: subset size {size} of sets of {n} and {m} images; choose 2 ... {min(n, m)}"
        )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(subsets):
        first = torch.randperm(n, generator=generator)[:size]
        yield first, torch.randperm(m, generator=generator)[:size]


def kernel_(products: torch.Tensor, width: int) -> torch.Tensor:
    """Turn products x.y into the kernel (x.y / F + 1)^3, in place."""
    return products.div_(width).add_(1).pow_(3)


def mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the unbiased MMD^2 of two sets of equal size, [m, F] each, in float64."""
    x, y = x.double(), y.double()
    size, width = x.shape
    within_x, within_y = kernel_(x @ x.T, width), kernel_(y @ y.T, width)
    off_diagonal = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return off_diagonal / (size * (size - 1)) - 2 * kernel_(x @ y.T, width).mean()


@final
class KernelSums:
    """Sums of the kernel over all pairs within the samples, between both sets, and within every subset.

    Filled with blocks of products x.y. With the 0/1 matrix S [n, subsets] of who is in which subset, the sums
    over all subsets are the columns of S * (K S) added up: no subset needs a kernel of its own.
    """

    def __init__(self, members: tuple[torch.Tensor, torch.Tensor], subset_size: int, width: int) -> None:
        self.reference_members, self.sample_members = members
        self.size, self.width = subset_size, width
        self.within, self.between = (members[0].new_zeros(members[0].shape[1]) for _ in range(2))
        self.sample_rows, self.cross_columns = (members[1].new_zeros(len(members[1])) for _ in range(2))

    def add_reference(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """Take a block within the reference, on or above the diagonal; overwrites `products`."""
        self._add_within(self.reference_members, rows, columns, kernel_(products, self.width))

    def add_samples(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """Take a block within the samples, on or above the diagonal; overwrites `products`."""
        values = kernel_(products, self.width)
        self._add_within(self.sample_members, rows, columns, values)
        self.sample_rows[rows] += values.sum(dim=1)
        if rows != columns:
            self.sample_rows[columns] += values.sum(dim=0)

    def add_cross(self, rows: slice, columns: slice, products: torch.Tensor) -> None:
        """Take a block of reference rows and sample columns; overwrites `products`."""
        values = kernel_(products, self.width)
        sums = values @ self.sample_members[columns]
        self.between += (self.reference_members[rows] * sums).sum(dim=0)
        self.cross_columns[columns] += values.sum(dim=0)

    def values(self) -> torch.Tensor:
        """Return the unbiased MMD^2 of each subset, [subsets]."""
        return self.within / (self.size * (self.size - 1)) - 2 * self.between / self.size**2

    def influence(self) -> torch.Tensor:
        """Return the first-order change of the MMD^2 of all images with each sample's weight, [M].

        The Hoeffding projection of the U-statistic: twice the sample's mean kernel with the other samples
        less that with the reference, about its mean.
        Source: W. Hoeffding, A class of statistics with asymptotically normal distribution, 1948.
        """
        n, m = len(self.reference_members), len(self.sample_members)
        witness = self.sample_rows / (m - 1) - self.cross_columns / n
        return 2 * (witness - witness.mean())

    def _add_within(self, members: torch.Tensor, rows: slice, columns: slice, values: torch.Tensor) -> None:
        if rows == columns:
            values.fill_diagonal_(0)  # the estimator is unbiased because it leaves out k(x, x)
        both_sides = 1 if rows == columns else 2
        self.within += both_sides * (members[rows] * (values @ members[columns])).sum(dim=0)


def membership(
    n: int, m: int, *, subsets: int, size: int, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return who is in which subset as 0/1 matrices [n, subsets] and [m, subsets], float64."""
    first, second = (torch.zeros(count, subsets, dtype=torch.float64) for count in (n, m))
    pairs = draw_subsets(n, m, subsets=subsets, size=size, seed=seed)
    for number, (chosen, also_chosen) in enumerate(pairs):
        first[chosen, number] = 1
        second[also_chosen, number] = 1
    return first.to(device), second.to(device)
