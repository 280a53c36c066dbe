"""Distances between two sets of features: Frechet, kernel, inception score, precision and recall.

Features are float [N, F], logits float [N, K]; all maths is float64. Each function is a pure function
of its arguments: what is random is seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.errors import NonFiniteError, UserInputError


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean [F] and unbiased covariance [F, F] of n feature vectors, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int


@dataclass(frozen=True, kw_only=True)
class MeanStd:
    """Mean and standard deviation (dividing by the count) over subsets or splits."""

    mean: float
    std: float


def statistics(features: torch.Tensor) -> Statistics:
    """Return mean and covariance (divisor N - 1) of features [N, F].

    Raises UserInputError for fewer than two vectors, NonFiniteError for NaN or infinity.
    """
    x = _checked(features, "features", at_least=2)
    mean = x.mean(dim=0)
    centred = x - mean
    return Statistics(mean=mean, covariance=centred.T @ centred / (len(x) - 1), n=len(x))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return ||m1 - m2||^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) between two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is
    symmetric and positive semi-definite even where N < F makes S1 and S2 singular.
    Source: arXiv:1706.08500, eq. 6.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    # [F, F]: columns of S1^1/2 in the eigenbasis; rounding makes zero eigenvalues slightly negative
    root = vectors * values.clamp(min=0).sqrt()
    trace_of_root = torch.linalg.eigvalsh(root.T @ b.covariance @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(0.0, float(distance))  # a distance; rounding may leave -1e-12 between equal sets


def kernel_distance(
    a: torch.Tensor, b: torch.Tensor, *, subsets: int, subset_size: int, seed: int = 0
) -> MeanStd:
    """Return the unbiased MMD^2 with the kernel (x.y / F + 1)^3 over seeded subsets of both sets.

    `a` is [N, F], `b` is [M, F]; not multiplied by 1000. Being unbiased it may be slightly negative.
    Raises UserInputError when a subset is larger than a set or has fewer than two vectors.
    Source: arXiv:1801.01401, eq. 4.
    """
    x, y = _checked(a, "features", at_least=2), _checked(b, "features", at_least=2)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise UserInputError(
            f"kernel distance: subset size {subset_size} of sets of {len(x)} and {len(y)} images; "
            f"choose 2 ... {min(len(x), len(y))}"
        )
    generator = torch.Generator().manual_seed(seed)

    def subset(features: torch.Tensor) -> torch.Tensor:
        chosen = torch.randperm(len(features), generator=generator)[:subset_size]
        return features[chosen.to(features.device)]

    return _mean_std([_mmd2(subset(x), subset(y)) for _ in range(subsets)])


def _mmd2(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the unbiased MMD^2 of two sets of equal size, [m, F] each."""
    m, width = x.shape

    def kernel(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p @ q.T / width + 1) ** 3

    within_x, within_y = kernel(x, x), kernel(y, y)
    off_diagonal = within_x.sum() - within_x.trace() + within_y.sum() - within_y.trace()
    return float(off_diagonal / (m * (m - 1)) - 2 * kernel(x, y).mean())


def inception_score(logits: torch.Tensor, *, split_size: int = 5000, shuffle_seed: int | None = 0) -> MeanStd:
    """Return exp(mean KL(p(y|x) || p(y))) over splits of `split_size` images.

    Images are permuted with `shuffle_seed` first, because sorted samples make splits of few classes;
    None takes contiguous splits, as ADM's evaluator does. The last split may be smaller.
    Source: arXiv:1606.03498, section 4; split size of guided-diffusion's evaluator.
    """
    log_p = _checked(logits, "logits", at_least=1).log_softmax(dim=1)
    if shuffle_seed is not None:
        generator = torch.Generator().manual_seed(shuffle_seed)
        log_p = log_p[torch.randperm(len(log_p), generator=generator).to(log_p.device)]
    scores = []
    for split in log_p.split(split_size):
        p = split.exp()
        log_marginal = p.mean(dim=0).log()
        # p log p -> 0 where a class has no probability at all; log_p is -inf only beyond float64
        divergence = (p * (split - log_marginal).nan_to_num(0.0)).sum(dim=1)
        scores.append(float(divergence.mean().exp()))
    return _mean_std(scores)


def precision(reference: torch.Tensor, samples: torch.Tensor, *, neighbours: int, chunk: int = 2048) -> float:
    """Return the part of the samples that lie on the reference's k-nearest-neighbour manifold.

    That is within the radius of some reference image: the distance to its k-th nearest other reference
    image, rim included (`<=`). `reference` is [N, F], `samples` [M, F]; `chunk` rows of distances are in
    memory at a time. Raises UserInputError when k is not smaller than the reference.
    Source: arXiv:1904.06991, eqs. 1-2.
    """
    centres = _checked(reference, "features", at_least=1)
    points = _checked(samples, "features", at_least=1)
    if not 1 <= neighbours < len(centres):
        raise UserInputError(
            f"precision and recall: {neighbours} neighbours in a set of {len(centres)} images; "
            f"choose 1 ... {len(centres) - 1}"
        )
    squared_radii = _squared_radii(centres, neighbours, chunk)
    inside = [(_squared_distances(rows, centres) <= squared_radii).any(dim=1) for rows in points.split(chunk)]
    return float(torch.cat(inside).double().mean())


def recall(reference: torch.Tensor, samples: torch.Tensor, *, neighbours: int, chunk: int = 2048) -> float:
    """Return the part of the reference that lies on the samples' manifold: `precision`, roles exchanged."""
    return precision(samples, reference, neighbours=neighbours, chunk=chunk)


def _squared_radii(x: torch.Tensor, neighbours: int, chunk: int) -> torch.Tensor:
    """Return each vector's squared distance to its k-th nearest other vector, [N]."""
    # the nearest of all is the vector itself at distance 0, so the k-th other is number k + 1
    return torch.cat(
        [_squared_distances(rows, x).kthvalue(neighbours + 1, dim=1).values for rows in x.split(chunk)]
    )


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return ||x - y||^2 of every pair, [N, M], as ||x||^2 + ||y||^2 - 2 x.y."""
    norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    distances = norms - 2 * x @ y.T
    # Each dot product is exact to F roundings of its size, so anything smaller than that is no
    # distance but cancellation; without this, equal vectors would not lie in balls of radius 0.
    noise = x.shape[1] * torch.finfo(x.dtype).eps * norms
    return torch.where(distances > noise, distances, 0.0)


def _checked(x: torch.Tensor, what: str, *, at_least: int) -> torch.Tensor:
    """Return `x` in float64; raises on a wrong shape, too few rows, NaN or infinity."""
    if x.ndim != 2 or len(x) < at_least:
        raise UserInputError(f"{what} must be [N, F] with N >= {at_least}, got {list(x.shape)}")
    bad = ~x.isfinite().all(dim=1)
    if bad.any():
        raise NonFiniteError(
            f"{int(bad.sum())} of {len(x)} images have NaN or infinite {what}; "
            f"the first is image {int(bad.nonzero()[0])}: look at it and at the feature network"
        )
    return x.double()


def _mean_std(values: list[float]) -> MeanStd:
    tensor = torch.tensor(values, dtype=torch.float64)
    return MeanStd(mean=float(tensor.mean()), std=float(tensor.std(correction=0)))
