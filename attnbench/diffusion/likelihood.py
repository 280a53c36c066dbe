"""The two densities of the variational bound: KL of Gaussians and the likelihood of 8-bit data."""

from __future__ import annotations

import math

import torch


def gaussian_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """Return KL(N1 || N2) elementwise, in nats."""
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + distance - 1)


def discretised_gaussian_nll(x: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Return -log P of the 8-bit bin around x in [-1, 1], elementwise, in nats.

    The outermost bins reach to infinity; probabilities below 1e-12 count as 1e-12, as in ADM.
    Source: arXiv:2006.11239, eq. 13.
    """
    inverse_std = torch.exp(-log_std)
    upper = _normal_cdf(inverse_std * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse_std * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -probability.clamp(min=1e-12).log()


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """Return the tanh approximation of the normal distribution function, as in ADM."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
