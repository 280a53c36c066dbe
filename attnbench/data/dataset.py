"""What a dataset is: two sets of uint8 images with labels, and where they come from."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from attnbench.storage.hashing import file_sha256

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


@dataclass(frozen=True)
class WrittenFiles:
    """Files of the user's that are read again and again: have they been overwritten in between?

    Each hash is found once, at first use.
    """

    root: Path
    names: tuple[str, ...]

    @cached_property
    def written(self) -> str:
        """Hash of names and times of writing; raises OSError."""
        digest = hashlib.sha256()
        for name in self.names:
            line = f"{(self.root / name).stat().st_mtime_ns} {name}\0"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def content(self) -> str:
        """Hash of names and bytes, for which every file is read; raises DataError."""
        with ThreadPoolExecutor() as pool:  # hashing and reading leave the interpreter lock
            digests = pool.map(lambda name: file_sha256(self.root / name), self.names)
            lines = (f"{sha256} {name}\0" for sha256, name in zip(digests, self.names, strict=True))
            return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images to train on, images kept out of training, and what a reader must know about them.

    `flip` says whether a mirrored image still belongs to its class. `unreadable` names the files
    that failed to open, relative to the dataset's folder, `remarks` say what else is left out or changed.
    `fingerprint` is another one where the user's files are others: of all checksums of a prepared set, of the
    names and sizes in a folder of images, whose `files` may still be others.
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
    remarks: tuple[str, ...] = ()
    fingerprint: str = ""
    files: WrittenFiles | None = None

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
