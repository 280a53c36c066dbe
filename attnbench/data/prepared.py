"""Dataset `prepared`: a training set that `attnbench data prepare` has written, memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.data.dataset import Dataset, DatasetRow, PartName
from attnbench.errors import DataError, cannot_read
from attnbench.specs import PreparedData, content_hash

if TYPE_CHECKING:
    import numpy as np
    import torch

    from attnbench.data.card import Card

ROW = DatasetRow(
    name="prepared",
    summary="a training set that `attnbench data prepare` has cut out of your images once, with checksums",
    source="the card in the folder named by `path`",
    licence="as the card says",
)


@dataclass(frozen=True)
class PreparedImages:
    """Images in memory-mapped shards; `get` copies them and decodes nothing."""

    shards: tuple[np.ndarray, ...]  # each uint8 [n, side, side, 3]
    labels: torch.Tensor
    side: int

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.labels)

    @cached_property
    def _ends(self) -> np.ndarray:
        import numpy as np

        return np.cumsum([len(shard) for shard in self.shards])

    def get(self, indices: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, side, side, 3]; each shard is read once, in the order of its images."""
        import numpy as np
        import torch

        wanted = indices.numpy()
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"images are 0 to {len(self) - 1}, got {wanted.min()} to {wanted.max()}")
        order = np.argsort(wanted, kind="stable")
        ends = np.searchsorted(wanted[order], self._ends)  # where each shard's run of indices stops
        images = np.empty((len(wanted), self.side, self.side, 3), dtype=np.uint8)
        begin = 0
        for shard, end, first in zip(self.shards, ends, (0, *self._ends), strict=False):
            if end > begin:
                run = order[begin:end]
                images[run] = shard[wanted[run] - first]
            begin = end
        return torch.from_numpy(images)


def load(spec: PreparedData) -> Dataset:
    """Open a finished set; counts and file sizes are checked, checksums are not (`attnbench data verify`).

    Raises DataError for an unfinished or damaged set and for a set of another image size.
    """
    card = read_fitting_card(spec)
    return Dataset(
        name=spec.name,
        train=_open(spec.path, card, "train"),
        held_out=_open(spec.path, card, "held-out"),
        class_names=tuple(card.classes),
        image_size=card.image_size,
        channels=3,
        flip=True,
        licence=card.licence,
        source=f"{card.source}; classes: {card.class_rule}; held out: {card.held_out_rule}",
        unreadable=tuple(card.unreadable()),
        fingerprint=content_hash([card.classes, *((file.name, file.sha256) for file in card.files())]),
    )


def class_names(spec: PreparedData) -> tuple[str, ...]:
    """Return the names of the classes; raises DataError as `load` does."""
    return tuple(read_fitting_card(spec).classes)


def most_images(spec: PreparedData, part: PartName, enough: int) -> int:
    """Return how many images a part has; raises DataError as `load` does."""
    return read_fitting_card(spec).parts[part].num_images


def read_fitting_card(spec: PreparedData) -> Card:
    """Return the card of the set that `spec` names; raises DataError as `load` does, without opening it."""
    from attnbench.data.card import check_sizes, read_card

    card = read_card(spec.path)
    check_sizes(spec.path, card)
    if card.image_size != spec.image_size:
        raise DataError(
            f"{spec.path} holds images of {card.image_size} px, data.image_size is {spec.image_size}; set "
            f"data.image_size to {card.image_size}, or prepare the set again (`attnbench data prepare SOURCE "
            f"--image-size {spec.image_size} --to FOLDER`)"
        )
    return card


def _open(folder: Path, card: Card, name: PartName) -> PreparedImages:
    import numpy as np
    import torch

    from attnbench.data.mapped import map_array

    part = card.parts[name]
    shape = (card.image_size, card.image_size, 3)
    shards = []
    try:
        for shard in part.shards:
            images = map_array(folder / shard.name)
            if images.shape != (shard.num_images, *shape) or images.dtype != np.uint8:
                raise ValueError(f"{shard.name} is {images.dtype} {list(images.shape)}")
            shards.append(images)
        labels = np.load(folder / part.labels.name)
        if labels.shape != (part.num_images,):
            raise ValueError(f"{part.labels.name} has {labels.shape}")
    except OSError as error:
        verify = f"let `attnbench data verify {folder}` name every damaged file"
        raise DataError(cannot_read(Path(error.filename or folder), error, verify)) from error
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{folder} is damaged: {error}; `attnbench data verify {folder}` names every damaged file"
        ) from error
    return PreparedImages(tuple(shards), torch.from_numpy(labels), card.image_size)
