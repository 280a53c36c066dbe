"""Nearest neighbours from products in float32, proved by their error bound; what is not proved is named.

With a and b about a common centre, d^2 = |a|^2 + |b|^2 - 2 a.b. In float32, unit roundoff u = 2^-24, a dot
product of F numbers in any order of summation errs by at most g |a| |b|, g = F u / (1 - F u) (N. Higham,
Accuracy and Stability of Numerical Algorithms, 2002, section 3.1, and Cauchy-Schwarz); rounding a, b and
|b|^2 to float32 and adding up adds less than 8 u of |b|^2 + 2 |a| |b|. So |b|^2 - 2 a.b less
g' (|b|^2 + 2 |a| |b|), g' with F + 8 in place of F, lies below d^2 - |a|^2, and |a|^2 of a rounded a is at
most 3 u too large. The search keeps the rows where that bound is least: a row that it has left out is farther
than the largest kept bound says, which proves the k nearest of those kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.metrics.smallest import merge_smallest

ROUNDOFF = 2.0**-24
BLOCK = 2048  # rows and columns whose products are in memory
LARGEST = 2.0**120  # squared norms whose products and sums float32 holds
SMALLEST = 2.0**-125  # what a product loses at most where float32 underflows


def float32_is_exact_enough(*sets: torch.Tensor) -> bool:
    """Return whether products of float32 are no less than that, as on a CPU that is not told otherwise."""
    return (
        all(features.device.type == "cpu" for features in sets)
        and torch.get_float32_matmul_precision() == "highest"
        and not torch.is_autocast_enabled("cpu")
    )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """For each of x [m]: rows of y and lower bounds of their squared distances, [m, kept] float64, ascending.

    `beyond` [m] is below the squared distance of every row of y that was left out; infinite where none was.
    """

    bounds: torch.Tensor
    rows: torch.Tensor
    beyond: torch.Tensor


def candidates(x: torch.Tensor, y: torch.Tensor, kept: int) -> Candidates:
    """Return the `kept` rows of y [N, F] with the least bounds for each of x [M, F].

    Where `x` is `y` itself each product is computed once for both of its rows.
    """
    centre = _centre(y)
    found = _Least(len(x), min(kept, len(y)))
    y_norms = torch.cat([_norms(_about(rows, centre)) for rows in y.split(BLOCK)])
    x_norms = y_norms if x is y else torch.cat([_norms(_about(rows, centre)) for rows in x.split(BLOCK)])
    if x is y:
        _search_itself(x, centre, y_norms, found)
    else:
        _search(x, y, centre, (x_norms, y_norms), found)
    bounds, order = found.bounds.double().sort(dim=1)
    bounds += (1 - 4 * ROUNDOFF) * x_norms[:, None]
    beyond = torch.full_like(x_norms, torch.inf) if kept >= len(y) else bounds[:, -1].clone()
    if not max(x_norms.max(), y_norms.max()) < LARGEST:
        bounds.fill_(-torch.inf)
        beyond.fill_(-torch.inf)  # float32 may have overflown: nothing is proved
    return Candidates(bounds=bounds, rows=found.rows.gather(1, order), beyond=beyond)


class _Least:
    """The least values of each row so far and the columns that they are of, [m, kept]."""

    def __init__(self, count: int, kept: int) -> None:
        self.bounds = torch.full((count, kept), torch.inf)
        self.rows = torch.zeros(count, kept, dtype=torch.int64)

    def merge(self, rows: slice, first: int, values: torch.Tensor) -> None:
        """Take values [rows, n] of the columns `first` onwards."""
        merge_smallest(self.bounds, self.rows, rows, first, values)


def _search(
    x: torch.Tensor,
    y: torch.Tensor,
    centre: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor],
    found: _Least,
) -> None:
    for first in range(0, len(x), BLOCK):
        rows = slice(first, min(first + BLOCK, len(x)))
        a = _about(x[rows], centre)
        least = _least_parts(norms[1], norms[0][rows].max().sqrt(), y)
        for begin in range(0, len(y), BLOCK):
            b = _about(y[begin : begin + BLOCK], centre)
            # one pass: what is of the column alone is there before the products are
            found.merge(rows, begin, torch.addmm(least[begin : begin + BLOCK], a, b.T, alpha=-2))


def _search_itself(x: torch.Tensor, centre: torch.Tensor, norms: torch.Tensor, found: _Least) -> None:
    parts = [slice(i, min(i + BLOCK, len(x))) for i in range(0, len(x), BLOCK)]
    least = _least_parts(norms, norms.max().sqrt(), x)
    for i, rows in enumerate(parts):
        a = _about(x[rows], centre)
        for columns in parts[i:]:
            products = torch.mm(a, _about(x[columns], centre).T).mul_(-2)
            if rows != columns:
                found.merge(columns, rows.start, (products + least[rows, None]).T.contiguous())
            found.merge(rows, columns.start, products.add_(least[columns]))


def _least_parts(norms: torch.Tensor, longest: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """Return |b|^2 less the bound of the error with any a up to `longest`, [n] float32."""
    width = of.shape[1]
    growth = (width + 8) * ROUNDOFF / (1 - (width + 8) * ROUNDOFF)
    error = growth * (norms + 2 * longest * norms.sqrt()) + width * SMALLEST
    return (norms - error).float()


def _centre(features: torch.Tensor) -> torch.Tensor:
    sums = [rows.double().sum(dim=0) for rows in features.split(BLOCK)]  # no float64 copy of them all
    return (torch.stack(sums).sum(dim=0) / len(features)).to(features.dtype)


def _about(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return (features - centre).float()


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return rows.double().square().sum(dim=1)
