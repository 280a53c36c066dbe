"""Datasets: one file per kind of source, and the functions that find them by name.

Sources are imported when they are loaded, so that listing them needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from attnbench.data.dataset import Dataset, DatasetRow, ImageSet, PartName
from attnbench.specs import DigitsData, PhotoPatchesData

if TYPE_CHECKING:
    from attnbench.specs import DataSpec

__all__ = [
    "Dataset",
    "DatasetRow",
    "ImageSet",
    "class_names",
    "list_datasets",
    "load_dataset",
    "most_images",
    "num_images",
]

SOURCES = {
    "digits": "attnbench.data.digits",
    "photo-patches": "attnbench.data.photo_patches",
    "image-folder": "attnbench.data.image_folder",
    "prepared": "attnbench.data.prepared",
}


def load_dataset(spec: DataSpec) -> Dataset:
    """Load the dataset that `spec` describes; the same spec gives the same images everywhere.

    Raises DataError when a folder or an image cannot be used.
    """
    dataset: Dataset = importlib.import_module(SOURCES[spec.name]).load(spec)
    return dataset


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """Return the names of the classes that `load_dataset` gives, without opening an image.

    Raises DataError when a folder cannot be used.
    """
    names: tuple[str, ...] = importlib.import_module(SOURCES[spec.name]).class_names(spec)
    return names


def num_images(spec: DigitsData | PhotoPatchesData) -> dict[PartName, int]:
    """Return how many images the parts of a built-in dataset have, without opening one."""
    known: dict[PartName, int] = importlib.import_module(SOURCES[spec.name]).num_images(spec)
    return known


def most_images(spec: DataSpec, part: PartName, enough: int) -> int:
    """Return how many images a part has, without opening one; of an image folder, at most: it counts files.

    It stops counting at `enough`. Raises DataError as `class_names` does.
    """
    if isinstance(spec, DigitsData | PhotoPatchesData):
        return num_images(spec)[part]
    most: int = importlib.import_module(SOURCES[spec.name]).most_images(spec, part, enough)
    return most


def list_datasets() -> list[DatasetRow]:
    """Return one row per kind of dataset, in the order a newcomer should read them."""
    return [importlib.import_module(module).ROW for module in SOURCES.values()]
