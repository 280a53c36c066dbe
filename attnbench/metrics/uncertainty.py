"""The interval of a metric from what each image adds to it."""

from __future__ import annotations

import torch

from attnbench.errors import UserInputError

NORMAL_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def interval(value: float, influence: torch.Tensor) -> tuple[float, float]:
    """Return the 95 % interval value -+ 1.96 sd(influence) / sqrt(n), (low, high).

    `influence` is [n], float64: the derivative of the value with the weight of each image, the other side
    (the reference) fixed. sd / sqrt(n) is Efron's infinitesimal jackknife, the bootstrap's standard error to
    first order in the weights. It knows no bias: a Frechet distance of few images is too high by more than
    its interval. Where the value itself vanishes to first order (a kernel distance of equal distributions)
    it is too narrow. Raises UserInputError for fewer than two images.
    Source: L. Jaeckel, The infinitesimal jackknife, 1972; B. Efron, The Jackknife, the Bootstrap and Other
    Resampling Plans, 1982, ch. 6.
    """
    if influence.ndim != 1 or len(influence) < 2:
        raise UserInputError(f"an interval needs two images, got influences {list(influence.shape)}")
    # divisor n, as a bootstrap draws from the n images themselves
    half = NORMAL_95 * float(influence.double().std(correction=0)) / len(influence) ** 0.5
    return value - half, value + half
