"""Mean and covariance of features, the Frechet distance between two of them, and each image's part in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attnbench.errors import UserInputError
from attnbench.metrics.checks import check_features

CHUNK = 4096  # vectors in float64 at a time
PANEL = 512  # features whose products with themselves and all later ones are one matrix product


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean [F] and unbiased covariance [F, F] of n feature vectors, float64; n = 0 where it is unknown."""

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int


class RunningStatistics:
    """Count, mean [F] and scatter [F, F] (sum of outer products about the mean) of the vectors seen, float64.

    The result does not depend on how the vectors are split into batches, beyond rounding. The three
    attributes are the whole state; of the symmetric scatter only the upper triangle counts.
    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
    1979.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def update(self, features: torch.Tensor) -> None:
        """Add vectors [B, F]; raises UserInputError on a wrong width, NonFiniteError on NaN or infinity."""
        check_features(features, at_least=0)
        if features.shape[1] != len(self.mean):
            raise UserInputError(
                f"features of width {features.shape[1]} do not join those of {len(self.mean)}"
            )
        self.add_checked(features)

    def add_checked(self, features: torch.Tensor) -> None:
        """Add vectors [B, F] that are known to be finite and of the right width."""
        for chunk in features.split(CHUNK):
            if len(chunk):
                self._add(chunk.double())

    def merge(self, other: RunningStatistics) -> None:
        """Add what another one has seen."""
        if not other.n:
            return
        self.scatter += other.scatter
        self._add_products(self._take_mean(other.mean, other.n))

    def statistics(self) -> Statistics:
        """Return mean and covariance (divisor n - 1); raises UserInputError for fewer than two vectors."""
        if self.n < 2:
            raise UserInputError(f"a covariance needs two images, got {self.n}")
        upper = self.scatter.triu() / (self.n - 1)
        return Statistics(mean=self.mean.clone(), covariance=upper + upper.triu(1).T, n=self.n)

    def _add(self, x: torch.Tensor) -> None:
        mean = x.mean(dim=0)
        # centred before the product, or a mean far from zero would cancel the digits of the spread;
        # the shift of the mean is one more row, so that F^2 numbers are written once a batch
        shift = self._take_mean(mean, len(x))
        self._add_products(torch.cat([x - mean, shift]))

    def _add_products(self, rows: torch.Tensor) -> None:
        for begin in range(0, len(self.mean), PANEL):
            panel = rows[:, begin : begin + PANEL]
            self.scatter[begin : begin + PANEL, begin:].addmm_(panel.T, rows[:, begin:])

    def _take_mean(self, mean: torch.Tensor, n: int) -> torch.Tensor:
        """Move count and mean; return the shift whose outer product belongs to the scatter, [1, F]."""
        total = self.n + n
        shift = mean - self.mean
        scaled = shift * (self.n * n / total) ** 0.5
        self.mean = self.mean + shift * (n / total)
        self.n = total
        return scaled[None]


def statistics(features: torch.Tensor) -> Statistics:
    """Return mean and covariance (divisor N - 1) of features [N, F], float64 in chunks.

    Raises UserInputError for fewer than two vectors, NonFiniteError for NaN or infinity.
    """
    check_features(features, at_least=2)
    running = RunningStatistics(features.shape[1], features.device)
    running.add_checked(features)
    return running.statistics()


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return ||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) between two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of L^T S2 L with S1 = L L^T, which is
    symmetric and positive semi-definite even where N < F makes S1 and S2 singular.
    Source: arXiv:1706.08500, eq. 6.
    """
    root = _factor(a.covariance)
    values = torch.linalg.eigvalsh(root.T @ b.covariance @ root)
    return _distance(a, b, _roots(a, b, values).sum())


def frechet(reference: Statistics, samples: Statistics, features: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the Frechet distance and its influence [N]: the first-order change with each sample's weight.

    `samples` are the statistics of `features` [N, F]; the reference is fixed. With c = y - m2,
    d = m2 - m1 and r = N / (N - 1), for weights that sum to one,
        influence = 2 d.c + r |c|^2 - tr S2 - (r c^T G c - tr G S2),  G = L (L^T S2 L)^+1/2 L^T,
    G being the gradient of 2 tr (S1 S2)^1/2 in S2 and ^+1/2 the root of the pseudo-inverse, for reweighting
    never leaves the span of the samples. One eigendecomposition gives both; with fewer samples than features
    it is that of [N, N] products Y S1 Y^T, in which r c^T G c needs no inverse. The mean influence is zero.
    Raises UserInputError if `features` are not what `samples` describe.
    """
    if len(features) != samples.n:
        raise UserInputError(f"statistics of {samples.n} images do not describe {len(features)} features")
    few = samples.n < len(samples.mean)
    trace, root_part = (_by_samples if few else _by_features)(reference, samples, features)
    shift = samples.mean - reference.mean
    scale = samples.n / (samples.n - 1)
    of_mean_and_spread = torch.cat(
        [2 * (c @ shift) + scale * c.square().sum(dim=1) for c in _centred(features, samples.mean)]
    )
    influence = of_mean_and_spread - samples.covariance.trace() - (scale * root_part - trace)
    return _distance(reference, samples, trace), influence


def _roots(a: Statistics, b: Statistics, values: torch.Tensor) -> torch.Tensor:
    """Return the roots of the eigenvalues, ascending, of a product that shares them with S1 S2."""
    # No more than this many are not zero; the root of the rest would turn rounding eps into eps^1/2.
    rank = min([len(values), *(s.n - 1 for s in (a, b) if s.n)])
    roots = values.clamp(min=0).sqrt()
    roots[: len(values) - rank] = 0
    return roots


def _distance(a: Statistics, b: Statistics, trace_of_root: torch.Tensor) -> float:
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(0.0, float(distance))  # a distance; rounding may leave -1e-12 between equal sets


def _factor(covariance: torch.Tensor) -> torch.Tensor:
    """Return some L with S = L L^T: Cholesky's, or the eigenvectors' where S is singular.

    Both are exact and differ by a rotation, which no eigenvalue of L^T S2 L sees; Cholesky's is faster.
    """
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()  # rounding makes zero eigenvalues slightly negative


def _by_features(
    reference: Statistics, samples: Statistics, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tr (S1 S2)^1/2 and c^T G c of each sample, [N], from the eigenvalues of L^T S2 L, [F]."""
    root = _factor(reference.covariance)
    values, vectors = torch.linalg.eigh(root.T @ samples.covariance @ root)
    roots = _roots(reference, samples, values)
    # what is not zero: above rounding, and within the rank, for rounding may be larger than all true values
    present = (values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)) & (roots > 0)
    project = root @ (vectors[:, present] * roots[present] ** -0.5)
    project = project.float()  # only the interval is made of this, and half the time of float64
    parts = [(c.float() @ project).double().square().sum(dim=1) for c in _centred(features, samples.mean)]
    return roots.sum(), torch.cat(parts)


def _by_samples(
    reference: Statistics, samples: Statistics, features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same from the eigenvalues of Z = Y S1 Y^T / (N - 1), [N]: c^T G c = (N - 1) diag Z^1/2."""
    centred = torch.cat(list(_centred(features, samples.mean)))
    product = centred @ reference.covariance @ centred.T / (samples.n - 1)
    values, vectors = torch.linalg.eigh((product + product.T) / 2)
    roots = _roots(reference, samples, values)
    return roots.sum(), (samples.n - 1) * (vectors.square() @ roots)


def _centred(features: torch.Tensor, mean: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the features about their mean in float64, some rows at a time."""
    return (chunk.double() - mean for chunk in features.split(CHUNK))
