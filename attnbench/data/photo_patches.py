"""Dataset `photo-patches`: square crops of colour photographs that pip packages ship."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.data.dataset import Dataset, DatasetRow, PartName
from attnbench.data.hashing import hash_order
from attnbench.errors import DataError, cannot_read
from attnbench.specs import PhotoPatchesData

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from attnbench.data.arrays import ArrayImages


CROPS_HIGH = 6
"""A photograph's height is this many crops, so that a crop shows a thing and not a texture."""
BANDS: tuple[tuple[PartName, float, float], ...] = (("train", 0.0, 0.75), ("held-out", 0.75, 1.0))
"""Vertical bands of every photograph as fractions of its width."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph in a package's folder, and the licence its package states for it."""

    name: str
    package: str
    file: str
    licence: str


# Left out: skimage's stereo motorcycle (no licence stated) and its colour wheel (not a photograph).
PHOTOS = (
    Photo(name="astronaut", package="skimage", file="data/astronaut.png", licence="public domain (NASA)"),
    Photo(name="cat", package="skimage", file="data/chelsea.png", licence="CC0 (Stefan van der Walt)"),
    Photo(name="coffee", package="skimage", file="data/coffee.png", licence="CC0 (Rachel Michetti)"),
    Photo(name="stars", package="skimage", file="data/hubble_deep_field.jpg", licence="public domain (NASA)"),
    Photo(name="tissue", package="skimage", file="data/ihc.png", licence="no known restrictions (CMMI)"),
    Photo(name="retina", package="skimage", file="data/retina.jpg", licence="CC0 (Mikael Häggström)"),
    Photo(name="rocket", package="skimage", file="data/rocket.jpg", licence="public domain (SpaceX)"),
    Photo(
        name="temple",
        package="sklearn",
        file="datasets/images/china.jpg",
        licence="CC BY 2.0 (flickr.com/photos/danielbuechele)",
    ),
    Photo(
        name="flower",
        package="sklearn",
        file="datasets/images/flower.jpg",
        licence="CC BY 2.0 (flickr.com/photos/vultilion)",
    ),
)

ROW = DatasetRow(
    name="photo-patches",
    summary=f"16- or 32-pixel crops of {len(PHOTOS)} colour photographs, one class each",
    source="photographs inside the wheels of scikit-image and scikit-learn",
    licence="; ".join(f"{photo.name}: {photo.licence}" for photo in PHOTOS),
)


def load(spec: PhotoPatchesData) -> Dataset:
    """Cut the crops; images are uint8 [N, side, side, 3], each crop drawn once.

    Training and held-out crops come from disjoint vertical bands, so they share no pixel.
    Raises DataError when a photograph is missing or has fewer places than crops are asked for.
    """
    side = spec.image_size
    bands = [_cut_bands(_open(photo), side) for photo in PHOTOS]
    return Dataset(
        name=spec.name,
        train=_part(bands, "train", side, _crops_of(spec)["train"]),
        held_out=_part(bands, "held-out", side, _crops_of(spec)["held-out"]),
        class_names=class_names(spec),
        image_size=side,
        channels=3,
        flip=True,
        licence=ROW.licence,
        source=ROW.source,
    )


def num_images(spec: PhotoPatchesData) -> dict[PartName, int]:
    """Return how many images each part has."""
    return {part: len(PHOTOS) * crops for part, crops in _crops_of(spec).items()}


def _crops_of(spec: PhotoPatchesData) -> dict[PartName, int]:
    """Return how many crops of each photograph are in each part."""
    return {"train": spec.crops_per_class, "held-out": max(1, spec.crops_per_class // 4)}


def class_names(spec: PhotoPatchesData) -> tuple[str, ...]:
    """Return the names of the classes."""
    return tuple(photo.name for photo in PHOTOS)


def _open(photo: Photo) -> Image:
    """Open a photograph from the installed package's own folder; nothing is downloaded."""
    import PIL.Image

    spec = importlib.util.find_spec(photo.package)
    if spec is None or spec.origin is None:
        raise DataError(f"photo-patches needs the package {photo.package}; install attnbench's dependencies")
    path = Path(spec.origin).parent / photo.file
    try:
        return PIL.Image.open(path).convert("RGB")
    except OSError as error:
        problem = cannot_read(path, error, "reinstall the package that ships it")
        raise DataError(f"photo-patches {problem}") from error


def _cut_bands(photo: Image, side: int) -> dict[PartName, Tensor]:
    """Cut a photograph into its bands, then shrink each; uint8 [H, W, 3].

    Cutting comes first: a filter that shrinks the whole photograph would mix pixels across the cut.
    """
    import numpy as np
    import PIL.Image
    import torch

    height = CROPS_HIGH * side
    bands: dict[PartName, Tensor] = {}
    for part, start, end in BANDS:
        band = photo.crop((round(start * photo.width), 0, round(end * photo.width), photo.height))
        width = max(side, round(band.width * height / photo.height))
        small = band.resize((width, height), PIL.Image.Resampling.LANCZOS)
        bands[part] = torch.from_numpy(np.asarray(small).copy())
    return bands


def _part(bands: list[dict[PartName, Tensor]], part: PartName, side: int, crops: int) -> ArrayImages:
    """Return `crops` crops of each photograph out of its band of one part."""
    import torch

    from attnbench.data.arrays import ArrayImages

    per_class = [
        _crops(photo_bands[part], f"{photo.name}/{part}", side, crops)
        for photo, photo_bands in zip(PHOTOS, bands, strict=True)
    ]
    labels = torch.arange(len(PHOTOS)).repeat_interleave(crops)
    return ArrayImages(torch.cat(per_class), labels)


def _crops(band: Tensor, name: str, side: int, crops: int) -> Tensor:
    """Return the first `crops` of all places in hash order, uint8 [crops, side, side, 3]."""
    import torch

    height, width, _ = band.shape
    places = [(top, left) for top in range(height - side + 1) for left in range(width - side + 1)]
    if crops > len(places):
        raise DataError(
            f"photo-patches has {len(places)} different {side}-pixel crops in {name}, got a request for "
            f"{crops}; lower crops_per_class (a quarter as many are held out)"
        )
    order = hash_order(f"{name}/{top}/{left}" for top, left in places)[:crops]
    return torch.stack(
        [band[top : top + side, left : left + side] for top, left in (places[index] for index in order)]
    )
