"""The formulas of ADM's evaluator in plain numpy: FID, inception score, precision and recall.

What guided-diffusion's `evaluations/evaluator.py` defines, written down afresh and slowly: float64, no
blocks, no matrix root (the trace of a root is the sum of the roots of the eigenvalues), distances from
differences. KID, which that evaluator has not, follows eq. 4 of arXiv:1801.01401. Nothing of attnbench is
used here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def frechet_distance(reference: Matrix, samples: Matrix) -> float:
    """Return |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2 of two sets [N, F], [M, F]."""
    s1, s2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (reference, samples))
    shift = reference.mean(axis=0) - samples.mean(axis=0)
    # S1 S2 has the eigenvalues of a positive semi-definite matrix; what is negative or complex is rounding
    eigenvalues = np.linalg.eigvals(s1 @ s2).real.clip(min=0)
    return float(shift @ shift + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(eigenvalues).sum())


def inception_score(probabilities: Matrix, split_size: int = 5000) -> float:
    """Return the mean over contiguous splits of exp of the mean KL of p(y|x), rows of [N, K], from p(y)."""
    scores = []
    for begin in range(0, len(probabilities), split_size):
        part = probabilities[begin : begin + split_size]
        divergence = part * (np.log(part) - np.log(part.mean(axis=0)))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))


def precision_and_recall(reference: Matrix, samples: Matrix, neighbours: int = 3) -> tuple[float, float]:
    """Return the parts of the samples and of the reference inside the other's balls, rims included."""
    reference_radii = _squared_radii(reference, neighbours)
    sample_radii = _squared_radii(samples, neighbours)
    between = _squared_distances(reference, samples)
    precision = (between <= reference_radii[:, None]).any(axis=0).mean()
    recall = (between <= sample_radii[None, :]).any(axis=1).mean()
    return float(precision), float(recall)


def kernel_distance(
    reference: Matrix, samples: Matrix, subsets: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> tuple[float, float]:
    """Return mean and standard deviation of the unbiased MMD^2, kernel (x.y / F + 1)^3, over subsets."""
    values = [_mmd2(reference[i], samples[j]) for i, j in subsets]
    return float(np.mean(values)), float(np.std(values))


def _mmd2(x: Matrix, y: Matrix) -> float:
    size, width = x.shape
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
    return float(within / (size * (size - 1)) - 2 * xy.mean())


def _squared_radii(x: Matrix, neighbours: int) -> Matrix:
    # sorted, the first is the vector itself, so number k is its k-th other neighbour
    return np.sort(_squared_distances(x, x), axis=1)[:, neighbours]


def _squared_distances(x: Matrix, y: Matrix) -> Matrix:
    return np.stack([((y - row) ** 2).sum(axis=1) for row in x])
