"""How well classes separate in a feature space, as numbers that need no picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnbench.errors import UserInputError
from attnbench.metrics.checks import check_features


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well classes separate in the feature space itself, all of its dimensions."""

    accuracy: float
    """Share of images whose class is that of most of their k nearest other images."""
    chance: float
    """Share of the largest class: what always naming it would reach."""
    silhouette: float
    """Mean of (b - a) / max(a, b), in -1 ... 1; a, b: mean distance to the own and the next class."""
    neighbours: int
    n: int


def separability(features: torch.Tensor, labels: torch.Tensor, *, neighbours: int = 10) -> Separability:
    """Return leave-one-out k-nearest-neighbour accuracy and silhouette of features [N, F], labels [N].

    Euclidean distances in all F dimensions, float64; of tied classes the one with the nearer neighbours wins,
    and a class of a single image has silhouette 0. Takes memory for N x N distances.
    Raises UserInputError for fewer than two classes or k not in 1 ... N - 1.
    Source: Rousseeuw 1987 (silhouette).
    """
    check_features(features, at_least=3)
    x = features.detach().double().cpu()
    present, own, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
    if not 2 <= len(present) < len(x):
        raise UserInputError(
            f"separability needs at least 2 classes and a class of 2 images, "
            f"got {len(present)} classes of {len(x)} images"
        )
    if not 1 <= neighbours < len(x):
        raise UserInputError(
            f"separability: {neighbours} neighbours among {len(x)} images; choose 1 ... {len(x) - 1}"
        )
    distances = _distances(x)
    classes = torch.nn.functional.one_hot(own, len(present)).double()  # [N, K]
    others = distances.clone().fill_diagonal_(torch.inf)  # no image is its own neighbour
    nearest = others.sort(dim=1, stable=True).indices[:, :neighbours]
    # one vote each; ranks only decide between equal counts, for all of them together weigh less than a vote
    weights = 1 + torch.arange(neighbours, 0, -1, dtype=torch.float64) / (neighbours + 1) ** 2
    chosen = (classes[nearest] * weights[:, None]).sum(dim=1).argmax(dim=1)
    return Separability(
        accuracy=float((chosen == own).double().mean()),
        chance=int(counts.max()) / len(x),
        silhouette=_silhouette(distances, classes, own, counts),
        neighbours=neighbours,
        n=len(x),
    )


def _distances(x: torch.Tensor) -> torch.Tensor:
    """Return the Euclidean distances [N, N] of x [N, F], by one matrix product; 0 between equal rows.

    From the mean on, so that what all features have in common costs no digits. scikit-learn, which computes
    the same, is not used: importing it takes longer than scoring a small case.
    """
    x = x - x.mean(dim=0)
    squares = x.square().sum(dim=1)
    squared = squares[:, None] + squares - 2 * (x @ x.T)
    # of what is left of two equal rows after rounding: F products and sums, each within eps of the squares
    rounding = 2 * x.shape[1] * torch.finfo(x.dtype).eps * (squares[:, None] + squares)
    return torch.where(squared > rounding, squared, 0.0).sqrt()


def _silhouette(
    distances: torch.Tensor, classes: torch.Tensor, own: torch.Tensor, counts: torch.Tensor
) -> float:
    """Return the mean silhouette of N images with distances [N, N] and classes one-hot [N, K]."""
    sums = distances @ classes  # [N, K]
    within = sums.gather(1, own[:, None])[:, 0] / (counts[own] - 1)  # 0 / 0 of a class of one image
    means = (sums / counts).scatter(1, own[:, None], torch.inf)
    between = means.min(dim=1).values
    # equal points have silhouette 0, and so has an image that is alone in its class
    return float(((between - within) / torch.maximum(within, between)).nan_to_num(0.0).mean())
