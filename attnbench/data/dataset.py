"""What a dataset is: two sets of uint8 images with labels, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

PartName = Literal["train", "held-out"]


class ImageSet(Protocol):
    """Images that are fetched by index; they may lie in memory or on disk."""

    @property
    def labels(self) -> torch.Tensor:
        """Class of every image, int64 [N]."""

    def __len__(self) -> int:
        """Return the number of images, N."""

    def get(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the images at `indices` (int64 [B]) as uint8 [B, H, W, C]; C is 1 or 3."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images to train on, images kept out of training, and what a reader must know about them.

    `flip` says whether a mirrored image still belongs to its class. `unreadable` names the files
    that failed to open, relative to the dataset's folder. `fingerprint` is another one where the user's
    files are others: of all checksums of a prepared set, of the names and sizes in a folder of images.
    """

    name: str
    train: ImageSet
    held_out: ImageSet
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    flip: bool
    licence: str
    source: str
    unreadable: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        """Return the number of classes; labels are 0 ... num_classes - 1."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True)
class DatasetRow:
    """One line of `attnbench list datasets`."""

    name: str
    summary: str
    source: str
    licence: str
