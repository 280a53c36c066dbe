"""Which classes a picture shows: drawn at random, close to each other, or named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from attnbench.errors import DataError, UserInputError, did_you_mean
from attnbench.evaluation.labelled import checked_labels
from attnbench.metrics.checks import check_features

MAX_CLASSES = 20  # more colours and markers cannot be told apart


def choose_classes(
    labels: torch.Tensor,
    features: torch.Tensor,
    count: int,
    how: Literal["random", "close"],
    *,
    seed: int = 0,
    num_classes: int,
) -> list[int]:
    """Return `count` of the classes that occur in `labels` [N], in ascending order.

    `random` draws them with `seed`. `close` starts from the two classes whose mean features are nearest to
    each other and adds, one by one, the class whose mean is on average nearest to those already chosen; give
    it the features [N, F] of real images, or the choice depends on the model being judged.
    Raises UserInputError when `count` is not in 2 ... 20 or there are fewer classes.
    """
    check_features(features, at_least=2)
    own = checked_labels(labels, "images to choose classes from", images=len(features), classes=num_classes)
    present = own.unique()
    if not 2 <= count <= MAX_CLASSES or count > len(present):
        raise UserInputError(
            f"t-SNE of {count} classes: choose 2 ... {min(MAX_CLASSES, len(present))}; the images show "
            f"{len(present)} classes, and more than {MAX_CLASSES} colours cannot be told apart"
        )
    if how == "random":
        generator = torch.Generator().manual_seed(seed)
        return sorted(present[torch.randperm(len(present), generator=generator)[:count]].tolist())
    own = own.to(features.device)
    means = torch.stack([features[own == label].double().mean(dim=0) for label in present.tolist()])
    return sorted(present[_tightest(means, count)].tolist())


def _tightest(means: torch.Tensor, count: int) -> list[int]:
    """Return the rows of means [K, F] in the order in which they join the group."""
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")  # [K, K]
    apart = distances.clone().fill_diagonal_(torch.inf)
    chosen = list(divmod(int(apart.argmin()), len(means)))
    while len(chosen) < count:
        to_group = distances[:, chosen].mean(dim=1)
        to_group[chosen] = torch.inf
        chosen.append(int(to_group.argmin()))
    return chosen


def named_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Return the labels of classes given by name, in the order given; raises DataError for an unknown one."""
    for name in names:
        if name not in class_names:
            some = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
            raise DataError(
                f"unknown class {name!r}{did_you_mean(name, class_names)}; "
                f"the images have {len(class_names)} classes: {some}"
            )
    return [list(class_names).index(name) for name in names]
