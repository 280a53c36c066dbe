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

    Euclidean distances in all F dimensions, float64; of tied classes the one with the nearer neighbours wins.
    Raises UserInputError for fewer than two classes or k not in 1 ... N - 1.
    Source: Rousseeuw 1987 (silhouette).
    """
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    check_features(features, at_least=3)
    x = features.detach().double().cpu().numpy()
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
    # asked without points, scikit-learn leaves each image out of its own neighbours
    nearest = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors(return_distance=False)
    votes = torch.nn.functional.one_hot(own[torch.from_numpy(nearest)], len(present)).double()  # [N, k, K]
    # one vote each; ranks only decide between equal counts, for all of them together weigh less than a vote
    weights = 1 + torch.arange(neighbours, 0, -1, dtype=torch.float64) / (neighbours + 1) ** 2
    chosen = (votes * weights[:, None]).sum(dim=1).argmax(dim=1)
    return Separability(
        accuracy=float((chosen == own).double().mean()),
        chance=int(counts.max()) / len(x),
        silhouette=float(silhouette_score(x, own.numpy())),
        neighbours=neighbours,
        n=len(x),
    )
