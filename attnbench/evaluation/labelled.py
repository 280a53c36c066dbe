"""Checks of labels, and of features that must belong together, handed in as plain tensors."""

from __future__ import annotations

import torch

from attnbench.errors import DataError, UserInputError


def same_width(*sets: torch.Tensor) -> None:
    """Raise UserInputError unless all features [N, F] have the same F."""
    widths = [features.shape[1] for features in sets]
    if len(set(widths)) > 1:
        raise UserInputError(
            f"features of different widths {widths} cannot be compared; extract them with the same network"
        )


def checked_labels(labels: torch.Tensor | None, what: str, *, images: int, classes: int) -> torch.Tensor:
    """Return labels [N] as int64 in 0 ... classes - 1; raises DataError when missing or out of range."""
    if labels is None:
        raise DataError(
            f"the {what} have no labels, and this needs the class of every image; "
            "give images in one folder per class, or a file with labels"
        )
    if labels.shape != (images,) or labels.is_floating_point():
        raise DataError(
            f"labels of the {what} must be {images} integers, one per image, "
            f"got {labels.dtype} of shape {list(labels.shape)}"
        )
    checked = labels.long().cpu()
    if images and not 0 <= int(checked.min()) <= int(checked.max()) < classes:
        raise DataError(
            f"labels of the {what} reach from {int(checked.min())} to {int(checked.max())}, "
            f"but {classes} class names were given: allowed are 0 ... {classes - 1}"
        )
    return checked
