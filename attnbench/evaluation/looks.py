"""Pictures of scored sets: samples beside their nearest training images, and t-SNE of chosen classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from attnbench.errors import DataError
from attnbench.evaluation.class_choice import choose_classes, named_classes
from attnbench.evaluation.collection import ImageCollection
from attnbench.evaluation.memorisation import memorisation
from attnbench.evaluation.nearest import identical_images, nearest, nearest_figure
from attnbench.evaluation.reference import Reference
from attnbench.evaluation.scorer import Scorer
from attnbench.evaluation.tsne import Panel, tsne_figure

NEIGHBOURS = 5  # training images beside each sample
LEVEL = 0.01  # a sample closer to the training set than this part of real images is looked at
_CHOICE = re.compile(r"^(?P<how>close|random):(?P<count>\d+)$")


def draw_nearest(path: Path, scorer: Scorer, images: ImageCollection, training: ImageCollection) -> str:
    """Draw the samples nearest to training images; return what was found, in a sentence."""
    samples, known = scorer.features(images), scorer.features(training)
    k = min(NEIGHBOURS, len(known))
    distances, indices = nearest(samples.pooled, known.pooled, k)
    found = memorisation(samples.pooled, known.pooled, levels=(LEVEL,))
    (close,) = found.closeness
    nearest_figure(
        images.image,
        training.image,
        distances,
        indices,
        path,
        extractor=scorer.settings.extractor,
        threshold=close.threshold,
    )
    copies = int((identical_images(samples.digests, known.digests) >= 0).sum())
    verdict = "more than chance explains" if close.suspicious else "no more than chance explains"
    return (
        f"nearest training images: {close.count:,} of {found.n:,} samples lie closer to {training.name} than "
        f"{LEVEL:.0%} of its images do to each other ({verdict}: at most {close.chance_limit:,}); {copies:,} "
        "are copies, pixel by pixel"
    )


def draw_tsne(
    path: Path, scorer: Scorer, sets: Sequence[ImageCollection], reference: Reference, classes: str
) -> list[Panel]:
    """Draw one panel per set and one of the reference; `classes` is `close:N`, `random:N` or names.

    Classes are chosen by the reference, so that no model has a say in it. Raises DataError without labels.
    """
    if reference.labels is None:
        raise DataError(
            f"t-SNE shows classes, and the reference {reference.name} has no labels; give real images in one "
            "folder per class"
        )
    names = class_names(reference)
    real = reference.features.pooled
    choice = _CHOICE.match(classes)
    if choice:
        how: Literal["close", "random"] = "close" if choice["how"] == "close" else "random"
        chosen = choose_classes(reference.labels, real, int(choice["count"]), how, num_classes=len(names))
    else:
        chosen = named_classes([name.strip() for name in classes.split(",")], names)
    panels: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
        images.name: (scorer.features(images).pooled, images.labels) for images in sets
    }
    panels[f"real: {reference.name}"] = (real, reference.labels)
    return tsne_figure(panels, names, path, classes=chosen, extractor=scorer.settings.extractor)


def class_names(reference: Reference) -> tuple[str, ...]:
    """Return the names of the reference's classes, or their numbers where it has no names."""
    if reference.class_names is not None:
        return reference.class_names
    count = 0 if reference.labels is None else int(reference.labels.max()) + 1
    return tuple(f"class {label}" for label in range(count))
