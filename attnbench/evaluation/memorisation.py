"""Whether samples lie suspiciously close to the training set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.nearest import nearest
from attnbench.metrics.checks import check_features


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How many samples lie closer to the training set than a small part of real images does."""

    level: float
    """Part of the real images the threshold was set for, such as 0.01."""
    threshold: float
    """A distance: that of the real image of rank floor(level (H + 1))."""
    count: int
    """Samples strictly closer than the threshold."""
    share: float
    interval: tuple[float, float]
    """95 % Wilson interval of the share, given the threshold."""
    expected: float
    """The share when nothing is memorised: rank / (H + 1), `level` or just below."""
    chance_limit: int
    """A count above this has a probability of at most 5 % when nothing is memorised."""

    @property
    def suspicious(self) -> bool:
        """Whether more samples are close than chance explains."""
        return self.count > self.chance_limit


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Samples held against the training set: distances [M], rows of the training set [M], shares."""

    distances: torch.Tensor
    indices: torch.Tensor
    closeness: tuple[Closeness, ...]
    yardstick: Literal["held-out", "training, leave-one-out"]
    """Which real images say how close is usual."""
    n: int
    yardstick_n: int


def memorisation(
    samples: torch.Tensor,
    training: torch.Tensor,
    held_out: torch.Tensor | None = None,
    *,
    levels: Sequence[float] = (0.01, 0.05),
    chunk: int = 2048,
    found: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Memorisation:
    """Return the share of samples that lie closer to `training` than real images the model never saw.

    `samples` [M, F], `training` [N, F]; `held_out` [H, F] is the yardstick, or, without it, the training
    images themselves, each left out in turn (which near duplicates in the training set make insensitive).
    If samples are as close to the training set as the yardstick, a share of `level` (exactly rank / (H + 1))
    is expected below the threshold, and their number follows a beta-binomial distribution, which takes in
    that the threshold comes from H images only. `found` is what `nearest(samples, training)` has returned,
    where that is known already. Many close samples are a reason to look at them, no proof:
    samples blander than real images lie closer, too, without being copies.
    Raises UserInputError for a yardstick of fewer than 1 / level - 1 images, DataError where so many of them
    are copies that the threshold is 0.
    Source: the three samples compared are those of arXiv:2004.05675 (Meehan et al. 2020).
    """
    distances, indices = found or nearest(samples, training, chunk=chunk)
    if held_out is None:
        usual, _ = nearest(training, training, chunk=chunk, leave_one_out=True)
    else:
        check_features(held_out, "features of the held-out images", at_least=1)
        usual, _ = nearest(held_out, training, chunk=chunk)
    ordered = usual[:, 0].sort().values
    return Memorisation(
        distances=distances[:, 0],
        indices=indices[:, 0],
        closeness=tuple(_closeness(distances[:, 0], ordered, level) for level in levels),
        yardstick="training, leave-one-out" if held_out is None else "held-out",
        n=len(distances),
        yardstick_n=len(ordered),
    )


def _closeness(distances: torch.Tensor, ordered: torch.Tensor, level: float) -> Closeness:
    """Count distances [M] below the order statistic of `ordered` [H] that belongs to `level`."""
    if not 0 < level < 1:
        raise UserInputError(f"memorisation: level {level:g} must lie between 0 and 1, such as 0.01")
    real, n = len(ordered), len(distances)
    rank = int(level * (real + 1) + 1e-9)  # 0.01 * 100 must not become 0 by rounding
    if rank < 1:
        raise UserInputError(
            f"memorisation: {real} real images have no closest {level:.0%}; give at least "
            f"{math.ceil(1 / level - 1 - 1e-9)} held-out images or choose a higher level"
        )
    threshold = float(ordered[rank - 1])
    if threshold == 0:
        raise DataError(
            f"memorisation: {level:.0%} of the {real} real images themselves have a copy among the training "
            "images, so no sample can be closer; remove these copies or choose a higher level"
        )
    count = int((distances < threshold).sum())
    return Closeness(
        level=level,
        threshold=threshold,
        count=count,
        share=count / n,
        interval=_wilson(count, n),
        expected=rank / (real + 1),
        chance_limit=_chance_limit(n, rank, real),
    )


def _wilson(count: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share. Source: Wilson 1927; Brown, Cai and DasGupta 2001."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _chance_limit(n: int, rank: int, real: int) -> int:
    """Return the least c with P(count <= c) >= 0.95, when n samples and the real images are alike.

    The part of the distribution below the rank-th of H values is Beta(rank, H + 1 - rank), so that the
    count among n more is beta-binomial.
    """
    from scipy.stats import betabinom

    return int(betabinom.ppf(0.95, n, rank, real + 1 - rank))
