"""Whether samples of similar classes stay apart: separability of the real images' closest classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnbench.evaluation.class_choice import choose_classes
from attnbench.evaluation.figures import PER_CLASS
from attnbench.evaluation.separability import separability
from attnbench.results import Measurement
from attnbench.specs import Protocol

MOST_CLASSES = 5
NEIGHBOURS = 10  # of the vote; one fewer than the images of a class where there are no more
LEAST = 10
"""Images of a class: with fewer, how many there are decides the vote."""
KINDS = ("knn_accuracy", "silhouette")


def closest_classes(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[int]:
    """Return the five classes of real images that lie closest, all where there are fewer; [] of one.

    Features [N, F] and labels [N] of real images alone, so that the choice is alike for every model.
    """
    count = min(MOST_CLASSES, len(labels.unique()))
    return choose_classes(labels, features, count, "close", num_classes=num_classes) if count > 1 else []


def images_each(labels: torch.Tensor, classes: Sequence[int], most: int = PER_CLASS) -> int:
    """Return how many images of each class can be looked at, as many of all of them; 0: too few."""
    count = min([most, *(int((labels == label).sum()) for label in classes)])
    return count if count >= LEAST else 0


def measure_separation(
    features: torch.Tensor, labels: torch.Tensor, classes: Sequence[int], each: int, names: Sequence[str]
) -> list[Measurement]:
    """Return k-nearest-neighbour accuracy and silhouette of the first `each` images of each class.

    Of features [N, F] with labels [N], in all F dimensions; the two are called as KINDS.
    Source: arXiv:2601.13683, appendix D and Fig. 11.
    """
    rows = torch.cat([(labels == label).nonzero().flatten()[:each] for label in classes])
    found = separability(features[rows], labels[rows], neighbours=min(NEIGHBOURS, each - 1))
    shown = f"{', '.join(names[label] for label in classes)}: closest in real images; {each} of each"
    notes = (f"{shown}, {found.neighbours} neighbours, chance {found.chance:.3g}", shown)
    return [
        Measurement(name=kind, values=[value], n=found.n, better="higher", note=note)
        for kind, value, note in zip(KINDS, (found.accuracy, found.silhouette), notes, strict=True)
    ]


def separation_not_measured(why: str) -> list[Measurement]:
    """Return both without a value, and the reason."""
    return [Measurement(name=kind, values=[], better="higher", note=f"not measured: {why}") for kind in KINDS]


def separation_name(kind: str, suffix: str, protocol: Protocol = "adm") -> str:
    """Return what a measurement is called on the features of an extractor with `suffix`, as metrics are.

    >>> separation_name("silhouette", "efflite0"), separation_name("silhouette", "", "clean")
    ('silhouette-efflite0', 'clean-silhouette')
    """
    return ("" if protocol == "adm" else f"{protocol}-") + kind + (f"-{suffix}" if suffix else "")
