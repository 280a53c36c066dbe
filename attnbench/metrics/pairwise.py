"""Kernel distance, precision and recall from one pass over the pairs of two sets of features.

All three need x.y of every pair within and between the sets: each product is computed once, in float64, a
block at a time, and half of those within a set follow by symmetry. Only blocks of features are float64.
Distances are exact to float64: ADM's evaluator computes them in float16 where that is finite, so its
precision and recall can differ from these; prdc's are the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from attnbench.metrics.checks import check_pair
from attnbench.metrics.kernel import KernelSums, draw_subsets, membership, mmd2
from attnbench.metrics.manifold import Manifold
from attnbench.metrics.uncertainty import standard_error

CHUNK = 1024  # rows and columns of a block
Taker = Callable[[slice, slice, torch.Tensor], None]
Half = TypeVar("Half")


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and standard deviation (dividing by the count) over subsets."""

    mean: float
    std: float


class Pairwise:
    """What the pass found; asking for a half that was switched off raises ValueError."""

    def __init__(
        self, kernel: KernelSums | None, manifold: Manifold | None, reference_part: dict[str, torch.Tensor]
    ) -> None:
        self._kernel, self._manifold = kernel, manifold
        self.reference_part = reference_part
        """What the pairs within the reference gave, for other samples: `pairwise(..., known=...)`."""

    @cached_property
    def kernel_values(self) -> list[float]:
        """Unbiased MMD^2 of each subset."""
        return [float(value) for value in _asked(self._kernel, "subsets").values()]

    @cached_property
    def kernel_influence(self) -> torch.Tensor:
        """First-order change of the MMD^2 of all images with each sample's weight, [M], float64."""
        return _asked(self._kernel, "subsets").influence()

    @cached_property
    def kernel_error(self) -> float | None:
        """Standard error of the mean over the subsets, the reference's images fixed.

        The samples' part, from the influence, and that of drawing these subsets and no others: the variance
        between subsets over their number. None for a single subset of more images, whose draw is not known.
        """
        kernel, values = _asked(self._kernel, "subsets"), self.kernel_values
        over_samples = standard_error(self.kernel_influence) ** 2
        if kernel.size == len(kernel.reference_members) == len(kernel.sample_members):
            return over_samples**0.5  # every subset is everything
        if len(values) == 1:
            return None
        return (over_samples + statistics.variance(values) / len(values)) ** 0.5

    @property
    def sample_inside(self) -> torch.Tensor:
        """Whether each sample lies on the reference's manifold, bool [M]; its mean is the precision."""
        return _asked(self._manifold, "neighbours").sample_inside

    @property
    def reference_inside(self) -> torch.Tensor:
        """Whether each reference image lies on the samples' manifold, bool [N]; its mean is the recall."""
        return _asked(self._manifold, "neighbours").reference_inside

    @cached_property
    def recall_error(self) -> float | None:
        """Standard error of the recall over samples, the reference fixed; None for too few samples."""
        return _asked(self._manifold, "neighbours").sample_balls.standard_error()


def pairwise(
    reference: torch.Tensor,
    samples: torch.Tensor,
    *,
    neighbours: int | None = 3,
    subsets: int | None = 100,
    subset_size: int = 1000,
    seed: int = 0,
    chunk: int = CHUNK,
    known: Mapping[str, torch.Tensor] | None = None,
) -> Pairwise:
    """Return kernel distance (unless `subsets` is None), precision and recall (unless `neighbours` is None).

    `reference` is [N, F], `samples` [M, F], any float dtype, on one device; the maths is float64. Definitions
    are those of `kernel_distance`, `precision` and `recall`. `known` is the `reference_part` of an earlier
    pass with this reference, these settings and, where there are subsets, as many samples: of two sets of one
    size a quarter of the products less, and the same bits. At most about ten blocks of `chunk` x `chunk` and
    `chunk` x F float64 numbers are in memory, and 8 (N + M) bytes per subset.
    Raises UserInputError for too few images, NonFiniteError for NaN or infinity.
    """
    check_pair(reference, samples)
    n, m = len(reference), len(samples)
    centre = _mean(reference)
    x, y = _Centred(reference, centre, chunk), _Centred(samples, centre, chunk)
    kernel = manifold = None
    if neighbours is not None:
        manifold = Manifold(n, m, neighbours, like=centre)
    if subsets is not None:
        members = membership(n, m, subsets=subsets, size=subset_size, seed=seed, device=centre.device)
        kernel = KernelSums(members, subset_size, reference.shape[1])
    if known is None:
        _feed(x, x, manifold and manifold.add_reference, kernel and kernel.add_reference)
    else:
        _restore(known, kernel, manifold)
    part = _reference_part(kernel, manifold)
    _feed(y, y, manifold and manifold.add_samples, kernel and kernel.add_samples)
    _feed(x, y, manifold and manifold.add_cross, kernel and kernel.add_cross)
    return Pairwise(kernel, manifold, part)


def _reference_part(kernel: KernelSums | None, manifold: Manifold | None) -> dict[str, torch.Tensor]:
    part = {} if kernel is None else {"within": kernel.within.cpu().clone()}
    return part if manifold is None else part | {"nearest": manifold.reference_nearest.cpu().clone()}


def _restore(known: Mapping[str, torch.Tensor], kernel: KernelSums | None, manifold: Manifold | None) -> None:
    if kernel is not None:
        kernel.within.copy_(known["within"])
    if manifold is not None:
        manifold.reference_nearest.copy_(known["nearest"])


def kernel_distance(
    a: torch.Tensor, b: torch.Tensor, *, subsets: int, subset_size: int, seed: int = 0, chunk: int = CHUNK
) -> MeanStd:
    """Return the unbiased MMD^2 with the kernel (x.y / F + 1)^3 over seeded subsets of both sets.

    `a` is [N, F], `b` is [M, F]; not multiplied by 1000. Being unbiased it may be slightly negative. Takes
    the subsets' own kernels or the sums of `pairwise`, whichever needs fewer products: the same to rounding.
    Raises UserInputError when a subset is larger than a set or has fewer than two vectors.
    Source: arXiv:1801.01401, eq. 4.
    """
    check_pair(a, b)
    n, m = len(a), len(b)
    if (n**2 + m**2) / 2 + n * m < 3 * subsets * subset_size**2:
        found = pairwise(
            a, b, neighbours=None, subsets=subsets, subset_size=subset_size, seed=seed, chunk=chunk
        )
        values = torch.tensor(found.kernel_values, dtype=torch.float64)
    else:
        drawn = draw_subsets(n, m, subsets=subsets, size=subset_size, seed=seed)
        values = torch.stack([mmd2(a[i.to(a.device)], b[j.to(b.device)]) for i, j in drawn])
    return MeanStd(mean=float(values.mean()), std=float(values.std(correction=0)))


def precision(
    reference: torch.Tensor, samples: torch.Tensor, *, neighbours: int, chunk: int = CHUNK
) -> float:
    """Return the part of the samples that lie on the reference's k-nearest-neighbour manifold.

    That is within the radius of some reference image: the distance to its k-th nearest other reference
    image, rim included (`<=`); distances that differ by less than rounding are equal. `reference` is [N, F],
    `samples` [M, F]. Raises UserInputError when k is not smaller than either set.
    Source: arXiv:1904.06991, eqs. 1-2.
    """
    found = pairwise(reference, samples, neighbours=neighbours, subsets=None, chunk=chunk)
    return float(found.sample_inside.double().mean())


def recall(reference: torch.Tensor, samples: torch.Tensor, *, neighbours: int, chunk: int = CHUNK) -> float:
    """Return the part of the reference that lies on the samples' manifold: `precision`, roles exchanged."""
    return precision(samples, reference, neighbours=neighbours, chunk=chunk)


class _Centred:
    """Features [N, F] about a centre, converted to float64 a block at a time, with their squared norms.

    About the centre no large common mean eats the digits of the distances. `to_origin` [N] brings products
    back: x.y = (x - c).(y - c) + to_origin of x + to_origin of y.
    """

    def __init__(self, features: torch.Tensor, centre: torch.Tensor, chunk: int) -> None:
        self.features, self.centre = features, centre
        self.parts = [slice(i, min(i + chunk, len(features))) for i in range(0, len(features), chunk)]
        rows = centre.new_empty(chunk, len(centre))
        self.norms = torch.cat([self.load(part, rows).square().sum(dim=1) for part in self.parts])
        half = centre.square().sum() / 2
        self.to_origin = torch.cat([self.load(part, rows) @ centre + half for part in self.parts])

    def load(self, part: slice, rows: torch.Tensor) -> torch.Tensor:
        """Write a part into `rows`, kept from part to part: fresh memory costs twice the arithmetic."""
        found = rows[: part.stop - part.start]
        return found.copy_(self.features[part]).sub_(self.centre)


def _feed(a: _Centred, b: _Centred, distances: Taker | None, products: Taker | None) -> None:
    """Hand every block of squared distances and of products x.y to whoever takes them.

    With `a` itself as `b` only blocks on or above the diagonal. Between two sets distances are lower bounds:
    they are compared with radii, and a distance that equals a radius must not miss it by rounding.
    """
    slack = 0.0 if a is b else 2 * len(a.centre) * torch.finfo(torch.float64).eps
    for rows, columns, block in _blocks(a, b):
        if distances:
            norms = (1 - slack) * a.norms[rows, None], (1 - slack) * b.norms[columns]
            distances(rows, columns, torch.add(norms[1], block, alpha=-2).add_(norms[0]))
        if products:
            products(rows, columns, block.add_(a.to_origin[rows, None]).add_(b.to_origin[columns]))


def _blocks(a: _Centred, b: _Centred) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield (x - c).(y - c) for blocks of pairs, on or above the diagonal within one set."""
    left, right = (side.centre.new_empty(side.parts[0].stop, len(side.centre)) for side in (a, b))
    for i, rows in enumerate(a.parts):
        x = a.load(rows, left)
        for columns in a.parts[i:] if a is b else b.parts:
            yield rows, columns, x @ b.load(columns, right).T


def _mean(features: torch.Tensor) -> torch.Tensor:
    sums = [chunk.double().sum(dim=0) for chunk in features.split(CHUNK)]  # no float64 copy of them all
    return torch.stack(sums).sum(dim=0) / len(features)


def _asked(half: Half | None, argument: str) -> Half:
    if half is None:
        raise ValueError(f"pairwise(..., {argument}=None) left this half out")
    return half
