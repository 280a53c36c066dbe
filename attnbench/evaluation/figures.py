"""Pictures of scored sets: samples beside their nearest training images, and t-SNE of chosen classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.class_choice import choose_classes, named_classes
from attnbench.evaluation.collection import ImageCollection, listed
from attnbench.evaluation.memorisation import memorisation
from attnbench.evaluation.nearest import identical_images, nearest, nearest_figure
from attnbench.evaluation.reference import Reference
from attnbench.evaluation.scorer import Scorer
from attnbench.evaluation.tsne import Panel, tsne_figure

NEIGHBOURS = 5  # training images beside each sample
PER_CLASS, PERPLEXITY = 100, 30.0  # of t-SNE
SHOWN_CLASSES = 5  # of t-SNE, where nobody chooses
LEVEL = 0.01  # a sample closer to the training set than this part of real images is looked at
CLASS_CHOICE = re.compile(r"^(?P<how>close|random):(?P<count>\d+)$")


def draw_nearest(path: Path, scorer: Scorer, images: ImageCollection, training: ImageCollection) -> str:
    """Draw the samples nearest to training images; return what was found, in a sentence.

    Where there are too few training images to say how close is usual, the sentence says so.
    """
    samples, known = scorer.features(images), scorer.features(training)
    distances, indices = nearest(samples.pooled, known.pooled, min(NEIGHBOURS, len(known)))
    threshold, verdict = _closeness(samples.pooled, known.pooled, training.name, (distances, indices))
    nearest_figure(
        images.image,
        training.image,
        distances,
        indices,
        path,
        extractor=scorer.settings.extractor,
        threshold=threshold,
    )
    copies = int((identical_images(samples.digests, known.digests) >= 0).sum())
    return f"nearest training images: {copies:,} samples are copies, pixel by pixel; {verdict}"


def _closeness(
    samples: torch.Tensor, training: torch.Tensor, name: str, near: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float | None, str]:
    """Return the distance below which a sample is suspicious, and a sentence about how many are."""
    try:
        found = memorisation(samples, training, levels=(LEVEL,), found=near)
    except UserInputError as error:
        return None, f"how many are suspiciously close was not measured: {error}"
    (close,) = found.closeness
    verdict = "more than" if close.suspicious else "no more than"
    return close.threshold, (
        f"{close.count:,} of {found.n:,} samples lie closer to {name} than {LEVEL:.0%} of its images do to "
        f"each other, {verdict} the {close.chance_limit:,} that chance explains"
    )


def draw_tsne(
    path: Path, scorer: Scorer, sets: Sequence[ImageCollection], reference: Reference, classes: str | None
) -> list[Panel]:
    """Draw one panel per set and one of the reference, of the `shown_classes`.

    Raises DataError without labels.
    """
    labels = {images.name: labels_as_in(reference, images) for images in sets}
    names, real = class_names(reference), reference.features.pooled
    chosen = shown_classes(reference, classes)
    panels: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {
        images.name: (scorer.features(images).pooled, labels[images.name]) for images in sets
    }
    panels[f"real: {reference.name}"] = (real, reference.labels)
    shown = sum(
        min(PER_CLASS, *(int((own == label).sum()) for _, own in panels.values() if own is not None))
        for label in chosen
    )
    return tsne_figure(
        panels,
        names,
        path,
        classes=chosen,
        extractor=scorer.settings.extractor,
        per_class=PER_CLASS,
        perplexity=min(PERPLEXITY, max(1.0, shown / 3)),  # of fewer images every one would be a neighbour
    )


def shown_classes(reference: Reference, classes: str | None) -> list[int]:
    """Return the labels that `classes` chooses: `close:N`, `random:N` or names; None: up to five close ones.

    Classes are chosen by the reference, so that no model has a say in it. Raises UserInputError naming the
    option for what it cannot choose, DataError without labels.
    """
    names = class_names(reference)
    if reference.labels is None:
        raise DataError(f"{reference.name} has no labels, and this needs the class of every image")
    asked = classes or f"close:{max(2, min(SHOWN_CLASSES, len(reference.labels.unique())))}"
    choice = CLASS_CHOICE.match(asked)
    if choice is None:
        return named_classes([name.strip() for name in asked.split(",")], names)
    how: Literal["close", "random"] = "close" if choice["how"] == "close" else "random"
    real, count = reference.features.pooled, int(choice["count"])
    try:
        return choose_classes(reference.labels, real, count, how, num_classes=len(names))
    except UserInputError as error:
        raise UserInputError(f"--classes {asked}: {error}") from error


def labels_as_in(reference: Reference, images: ImageCollection) -> torch.Tensor:
    """Return the labels of images, int64 [N], in a reference's numbering: one name, one class.

    Where one of them has no names, its numbers are those that the other's folders are named by, if all are
    named by numbers; else they count the other's classes in order of name. It is told how they were matched.
    Raises DataError where one of them has no labels, or the images show a class that the reference has not.
    """
    for name, known in ((reference.name, reference.labels), (images.name, images.labels)):
        if known is None:
            raise DataError(
                f"{name} has no labels, and this needs the class of every image; give images in one folder "
                "per class, or a file with labels"
            )
    assert images.labels is not None
    if images.class_names is None or reference.class_names is None:
        return _by_number(reference, images, images.labels)
    shown = {images.class_names[label] for label in images.labels.unique().tolist()}
    if unknown := sorted(shown - set(reference.class_names)):
        raise DataError(
            f"{images.name} shows classes that {reference.name} has not: {listed(unknown)}; call equal "
            "classes alike, or take real images of all of them"
        )
    places = {name: label for label, name in enumerate(reference.class_names)}
    return torch.tensor([places.get(name, -1) for name in images.class_names])[images.labels]


def _by_number(reference: Reference, images: ImageCollection, labels: torch.Tensor) -> torch.Tensor:
    """Return the labels of images in a reference's numbering, where one of the two has numbers alone."""
    names = images.class_names or reference.class_names or ()
    named, numbered = (
        (images.name, reference.name) if images.class_names is not None else (reference.name, images.name)
    )
    if not all(name.isdecimal() for name in names):
        if names:
            images.warn(
                f"classes of {numbered} are numbers, matched to the classes of {named} in order of name: "
                f"class 0 is {names[0]}, class {len(names) - 1} is {names[-1]}"
            )
        return labels
    if [int(name) for name in names] == list(range(len(names))):
        return labels  # the same numbers
    numbers = torch.tensor([int(name) for name in names])
    if images.in_order:
        images.warn(
            f"classes of {numbered} are matched to folders of {named} in order of name, as training counts "
            f"them: class {len(names) - 1} is folder {names[-1]}"
        )
        return labels
    if len(numbers.unique()) < len(numbers):
        raise DataError(
            f"{named} has several folders for one number; name each class's folder by another one"
        )
    images.warn(
        f"classes of {numbered} are matched by number to the folders of {named}, not in their order of name: "
        f"class {int(names[-1])} is folder {names[-1]}"
    )
    if images.class_names is not None:
        return numbers[labels]
    unknown = sorted(set(labels.unique().tolist()) - set(numbers.tolist()))
    if unknown:
        raise DataError(
            f"{images.name} shows classes that {reference.name} has no folder of: {listed(unknown)}; name "
            "folders by the numbers of the classes, or take real images of all of them"
        )
    return torch.tensor([numbers.tolist().index(label) for label in labels.tolist()])


def class_names(reference: Reference) -> tuple[str, ...]:
    """Return the names of the reference's classes, or their numbers where it has no names."""
    if reference.class_names is not None:
        return reference.class_names
    count = 0 if reference.labels is None else int(reference.labels.max()) + 1
    return tuple(f"class {label}" for label in range(count))
