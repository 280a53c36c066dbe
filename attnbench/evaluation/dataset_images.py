"""The real images of a dataset as a collection, so that their features are extracted and kept like any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from attnbench.data import Dataset, ImageSet, load_dataset
from attnbench.data.card import read_card
from attnbench.data.dataset import PartName
from attnbench.data.image_folder import FolderImages
from attnbench.errors import DataError
from attnbench.evaluation.collection import (
    PIECE_SIZE,
    SHARD_SIZE,
    ImageCollection,
    ImageShard,
    pixel_digests,
)
from attnbench.evaluation.image_files import cropped_key
from attnbench.specs import PreparedData


def dataset_images(dataset: Dataset, part: PartName, rows: torch.Tensor | None = None) -> ImageCollection:
    """Return one part of a dataset, or some rows of it; raises DataError where it holds no image."""
    images = dataset.train if part == "train" else dataset.held_out
    if not len(images):
        raise DataError(
            f"dataset {dataset.name} has no {part} images; keep some out (data.held_out_fraction)"
        )
    if rows is None:
        rows = torch.arange(len(images))
    return ImageCollection(
        name=f"{dataset.name} ({part})",
        shards=tuple(_shard(images, indices) for indices in rows.split(SHARD_SIZE)),
        height=dataset.image_size,
        width=dataset.image_size,
        channels=dataset.channels,
        labels=images.labels[rows],
        class_names=dataset.class_names,
    )


def prepared_images(folder: Path, part: PartName) -> ImageCollection:
    """Return one part of a set that `attnbench data prepare` has written; raises DataError."""
    spec = PreparedData(path=folder, image_size=read_card(folder).image_size)
    return replace(dataset_images(load_dataset(spec), part), name=f"{folder} ({part})")


def _shard(images: ImageSet, indices: torch.Tensor) -> ImageShard:
    shard = ImageShard(
        count=len(indices),
        load=lambda: images.get(indices),
        load_one=lambda index: images.get(indices[index : index + 1])[0],
        load_rows=lambda first, count: images.get(indices[first : first + count]),
    )
    if isinstance(images, FolderImages):  # decoded, cropped and resized when asked for: its files are hashed
        files = [images.root / images.names[index] for index in indices.tolist()]
        return replace(shard, find_key=lambda: cropped_key(files, images.side))
    return replace(shard, find_digests=lambda: _digests(shard))


def _digests(shard: ImageShard) -> torch.Tensor:
    return torch.cat([pixel_digests(images) for images in shard.pieces(PIECE_SIZE)])
