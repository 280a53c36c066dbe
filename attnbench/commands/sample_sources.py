"""A case's samples by class: from the store, or cut out of the grid picture that its run kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from attnbench.commands.samples import class_names_of
from attnbench.errors import DataError
from attnbench.evaluation.npz_files import open_npz_shards
from attnbench.evaluation.run_samples import finished_samples
from attnbench.report.grids import read_grids
from attnbench.results import Result
from attnbench.specs import Case
from attnbench.stages.sampling.grid import GAP, SMALLEST_SIDE

Pixels = NDArray[np.uint8]  # [H, W, C]


@dataclass(frozen=True, kw_only=True)
class SampleSource:
    """The samples of one case, found by class and number within the class."""

    places: dict[int, list[int]]
    """Where the samples of each class lie, in their order."""
    read: Callable[[int], Pixels]
    names: Sequence[str]
    """What label 0, 1, ... are called; empty where nobody knows."""
    remark: str = ""
    """Why there are not more, where that is not the run's own doing."""

    @property
    def classes(self) -> set[int]:
        """The classes that have samples."""
        return set(self.places)

    def count(self, label: int) -> int:
        """Return how many samples there are of a class."""
        return len(self.places.get(label, ()))

    def image(self, label: int, number: int) -> Pixels:
        """Return one sample of a class, uint8 [H, W, C]."""
        return self.read(self.places[label][number])

    def class_name(self, label: int) -> str:
        """Return what a class is called, or its number."""
        return self.names[label] if label < len(self.names) else f"class {label}"


def open_source(folder: Path, result: Result, case: Case) -> SampleSource | str:
    """Return a case's samples, or why there are none: from the store, else from the picture in its run."""
    names, _ = class_names_of(folder, result)
    samples = finished_samples(folder, result)
    if samples is None:
        return _of_grid(folder, result, case, names)
    images = open_npz_shards(samples, name=result.label)
    assert images.labels is not None  # our own samples have them
    places: dict[int, list[int]] = {}
    for place, label in enumerate(images.labels.tolist()):
        places.setdefault(label, []).append(place)
    return SampleSource(places=places, read=lambda place: images.image(place).numpy(), names=names)


def _of_grid(folder: Path, result: Result, case: Case, names: Sequence[str]) -> SampleSource | str:
    gone = "its samples are not in the store beside the run"
    grids = read_grids(folder, [result])
    if not grids:
        return f"{gone}, and the run kept no grid picture of it"
    if grids[0].problem:
        return f"{gone}, and {grids[0].problem}"
    if case.sample.labels != "balanced":
        return f"{gone}, and its grid picture does not say which class is where (sample.labels: random)"
    try:
        cells = grid_cells(folder / grids[0].path, case.data.image_size)
    except DataError as error:
        return f"{gone}, and {error}"
    rows, columns = len(cells), len(cells[0])
    return SampleSource(
        places={row: [row * columns + column for column in range(columns)] for row in range(rows)},
        read=lambda place: cells[place // columns][place % columns],
        names=names,
        remark=" in the run's grid picture (its samples are not in the store)",
    )


def grid_cells(path: Path, side: int) -> list[list[Pixels]]:
    """Return the images of a sample grid, one row per class, as they were drawn; raises DataError.

    `side` is that of an image in pixels. Enlarged images are read back exactly: they were repeated.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    scale = -(-SMALLEST_SIDE // side)
    cell = side * scale + GAP
    (rows, more), (columns, wider) = divmod(pixels.shape[0] - GAP, cell), divmod(pixels.shape[1] - GAP, cell)
    if more or wider or not rows or not columns:
        raise DataError(
            f"{path} of {pixels.shape[1]} x {pixels.shape[0]} pixels is no grid of samples of {side} px"
        )
    tops, lefts = (range(GAP, GAP + count * cell, cell) for count in (rows, columns))
    return [
        [pixels[top : top + side * scale : scale, left : left + side * scale : scale] for left in lefts]
        for top in tops
    ]
