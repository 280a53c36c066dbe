"""The interval of a metric: from what each image adds to it, or from a standard error found otherwise."""

from __future__ import annotations

import torch

from attnbench.errors import UserInputError

NORMAL_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def standard_error(influence: torch.Tensor) -> float:
    """Return sd(influence) / sqrt(n), the first-order standard error of a metric over its images.

    `influence` is [n], float64: the derivative of the value with the weight of each image, the other side
    (the reference) fixed. This is Efron's infinitesimal jackknife, the bootstrap's standard error to first
    order in the weights. It knows no bias: a Frechet distance of few images is too high by more than its
    interval. Raises UserInputError for fewer than two images.
    Source: L. Jaeckel, The infinitesimal jackknife, 1972; B. Efron, The Jackknife, the Bootstrap and Other
    Resampling Plans, 1982, ch. 6.
    """
    if influence.ndim != 1 or len(influence) < 2:
        raise UserInputError(f"an interval needs two images, got influences {list(influence.shape)}")
    # divisor n, as a bootstrap draws from the n images themselves
    return float(influence.double().std(correction=0)) / len(influence) ** 0.5


def interval(value: float, error: float) -> tuple[float, float]:
    """Return the 95 % interval value -+ 1.96 standard errors, (low, high)."""
    half = NORMAL_95 * error
    return value - half, value + half


def share_interval(share: float, error: float, *, counted: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share with this standard error, within 0 ... 1.

    Near 0 and 1 it leans to the middle, where value -+ 1.96 errors would miss the truth or leave the range.
    The share counts for as many independent images as would give it this error; where it has none, or all
    images agree, for the `counted` ones, and the interval is not narrower than 1.96 errors.
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    n = share * (1 - share) / error**2 if error > 0 and 0 < share < 1 else counted
    z2 = NORMAL_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL_95 / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    if share == 0:  # the rim is exact, which rounding would miss
        return 0.0, max(high, min(1.0, NORMAL_95 * error))
    if share == 1:
        return min(low, max(0.0, 1 - NORMAL_95 * error)), 1.0
    return low, high
