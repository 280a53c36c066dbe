"""ADM's formulas once more, in plain numpy and as the papers print them: what the self-test compares with.

Slow, one image at a time where that reads better, and sharing no line with the metrics. A transcription of
the formulas of guided-diffusion's evaluations/evaluator.py in float64, without its fallbacks and its float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def frechet_distance(x: Array, y: Array) -> float:
    """Return |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^1/2 of features [N, F] and [M, F].

    tr (S1 S2)^1/2 is the sum of the roots of the eigenvalues of S1 S2, which are real and not negative.
    """
    difference = x.mean(axis=0) - y.mean(axis=0)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    eigenvalues = np.linalg.eigvals(first @ second).real.clip(min=0)
    # rounding leaves tiny values where there should be zeros, and roots make them large
    eigenvalues = np.sort(eigenvalues)[::-1][: min(len(x), len(y)) - 1]
    return float(
        difference @ difference + np.trace(first) + np.trace(second) - 2 * np.sqrt(eigenvalues).sum()
    )


def inception_score(logits: Array, split_size: int) -> float:
    """Return the mean over contiguous splits of exp(mean KL(p(y|x) || p(y)))."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    predictions = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = []
    for start in range(0, len(predictions), split_size):
        part = predictions[start : start + split_size]
        divergences = [np.sum(p * (np.log(p) - np.log(part.mean(axis=0)))) for p in part]
        scores.append(np.exp(np.mean(divergences)))
    return float(np.mean(scores))


def kernel_distance(x: Array, y: Array) -> float:
    """Return the unbiased MMD^2 of features [m, F] and [m, F] with the kernel (x.y / F + 1)^3."""

    def kernel(a: Array, b: Array) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    m = len(x)
    others = [(i, j) for i in range(m) for j in range(m) if i != j]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in others) / (m * (m - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / m**2


def precision_and_recall(reference: Array, samples: Array, neighbours: int) -> tuple[float, float]:
    """Return the share of samples on the reference's manifold, and the other way round."""

    def radii(points: Array) -> list[float]:
        return [np.sort(np.square(points - p).sum(axis=1))[neighbours] for p in points]

    def share(points: Array, centres: Array, limits: list[float]) -> float:
        inside = [any(np.square(centres - p).sum(axis=1) <= limits) for p in points]
        return float(np.mean(inside))

    return share(samples, reference, radii(reference)), share(reference, samples, radii(samples))
