"""Dataset `digits`: scikit-learn's scanned handwritten digits."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from attnbench.data.dataset import Dataset, DatasetRow, PartName
from attnbench.data.hashing import hash_order
from attnbench.specs import DigitsData

NUM_CLASSES = 10
HELD_OUT_FRACTION = 0.2

ROW = DatasetRow(
    name="digits",
    summary="1,797 scanned handwritten digits, 8x8 grey, 10 classes",
    source="scikit-learn's load_digits; UCI Optical Recognition of Handwritten Digits (test part)",
    licence="CC BY 4.0 (as the UCI repository states, doi:10.24432/C50P49)",
)


def load(spec: DigitsData) -> Dataset:
    """Return the digits, a fifth of each class held out; images are uint8 [N, 8, 8, 1].

    The scans count ink in 0 ... 16; here that is round(ink * 255 / 16).
    """
    import numpy as np
    import torch

    from attnbench.data.arrays import ArrayImages

    ink, digit_of = _scans()
    grey = np.round(ink * 255 / 16).astype(np.uint8)
    images = torch.from_numpy(grey)[..., None]  # [N, 8, 8, 1]
    labels = torch.from_numpy(digit_of.astype(np.int64))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(NUM_CLASSES):
        members = torch.nonzero(labels == digit).flatten()
        order = hash_order(f"digits/{index}" for index in members.tolist())
        held_out[members[order[: round(HELD_OUT_FRACTION * len(members))]]] = True
    return Dataset(
        name=spec.name,
        train=ArrayImages(images[~held_out], labels[~held_out]),
        held_out=ArrayImages(images[held_out], labels[held_out]),
        class_names=class_names(spec),
        image_size=8,
        channels=1,
        flip=False,  # a mirrored 2 is no digit
        licence=ROW.licence,
        source=ROW.source,
    )


def _scans() -> tuple[Any, Any]:
    """Return the scans, float64 [1797, 8, 8], and their labels, as `load_digits` does.

    Its file is read without its library, whose import takes ten times as long; where scikit-learn keeps it
    elsewhere, by its function. Source: sklearn/datasets/_base.py, load_digits.
    """
    import numpy as np

    library = importlib.util.find_spec("sklearn")
    path = Path(library.origin).parent / "datasets/data/digits.csv.gz" if library and library.origin else None
    if path is None or not path.is_file():
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    table = np.loadtxt(gzip.decompress(path.read_bytes()).decode().splitlines(), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def num_images(spec: DigitsData) -> dict[PartName, int]:
    """Return how many images each part has."""
    return {"train": 1438, "held-out": 359}


def class_names(spec: DigitsData) -> tuple[str, ...]:
    """Return the names of the classes."""
    return tuple(str(digit) for digit in range(NUM_CLASSES))
