"""A set of images to be scored: shards that know their content's key and are decoded only when asked."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from attnbench.errors import DataError
from attnbench.metrics.threads import each

DIGEST_BYTES = 16
SHARD_SIZE = 1000  # images
PIECE_SIZE = 128  # images that are read and hashed at a time, about
MOST_CLASSES = 1_000_000
"""A label above this is no class number, and as many names and counts would fill the memory."""


@dataclass(frozen=True, kw_only=True)
class ImageShard:
    """Some consecutive images of a collection.

    `load()` returns all of them and `load_one(i)` one of them, uint8 [n, H, W, C] and [H, W, C];
    `load_rows(first, count)` some of them, where not all need to be in memory for that. `find_key` hashes
    what lies on the disk, without decoding it; where that is pixels, `find_digests` hashes each image, uint8
    [n, 16], and the key is made of these: no pixel is hashed twice.
    """

    count: int
    load: Callable[[], torch.Tensor]
    load_one: Callable[[int], torch.Tensor]
    find_key: Callable[[], str] | None = None
    find_digests: Callable[[], torch.Tensor] | None = None
    load_rows: Callable[[int, int], torch.Tensor] | None = None

    @functools.cached_property
    def key(self) -> str:
        """Content address: hexadecimal digits of a SHA-256, found at first use."""
        if self.find_key is not None:
            return self.find_key()
        if self.digests is None:
            raise TypeError("a shard of images needs find_key or find_digests")
        return hashlib.sha256(b"images by digest" + self.digests.numpy().tobytes()).hexdigest()

    @functools.cached_property
    def digests(self) -> torch.Tensor | None:
        """The images' `pixel_digests`, where the key is made of them; None where they are not known yet."""
        return None if self.find_digests is None else self.find_digests()

    def pieces(self, size: int) -> Iterator[torch.Tensor]:
        """Yield the images in order, at most `size` at a time."""
        if self.load_rows is None:
            yield from self.load().split(size)
            return
        for first in range(0, self.count, size):
            yield self.load_rows(first, min(size, self.count - first))


@dataclass(frozen=True, kw_only=True)
class ImageCollection:
    """Images of one size, uint8 RGB or grey, with labels int64 [N] where they are known.

    Labels of our own samples count the classes of the training data in order of name (`in_order`); those of
    other npz files may as well be numbers that folders are named by. `warnings` grows: what opening and
    looking at the images found worth a reader's attention.
    """

    name: str
    shards: tuple[ImageShard, ...]
    height: int
    width: int
    channels: int
    labels: torch.Tensor | None = None
    class_names: tuple[str, ...] | None = None
    in_order: bool = False
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return sum(shard.count for shard in self.shards)

    @property
    def num_classes(self) -> int:
        """Return the number of classes, 0 where labels are not known."""
        if self.class_names is not None:
            return len(self.class_names)
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def image(self, index: int) -> torch.Tensor:
        """Return one image, uint8 [H, W, C]; raises DataError where it cannot be decoded."""
        left = index if index >= 0 else len(self) + index
        for shard in self.shards:
            if 0 <= left < shard.count:
                return shard.load_one(left)
            left -= shard.count
        raise IndexError(f"{self.name} has {len(self)} images, asked for number {index}")

    def batches(self, batch_size: int = 64) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield images uint8 [B, H, W, C] and labels int64 [B] in order; one shard is in memory at a time."""
        done = 0
        for shard in self.shards:
            for images in shard.load().split(batch_size):
                labels = None if self.labels is None else self.labels[done : done + len(images)]
                yield images, labels
                done += len(images)

    def warn(self, text: str) -> None:
        """Add a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)


def single_colour(image: torch.Tensor) -> bool:
    """Return whether all pixels of an image [H, W, C] are the same."""
    first_row = image[0] == image[0, 0]  # most images differ here already
    return bool(first_row.all()) and bool((image == image[0, 0]).all())


def pixel_digests(images: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return uint8 [N, 16]: the first bytes of the SHA-256 of each image's shape and pixels."""
    pixels = images.numpy() if isinstance(images, torch.Tensor) else images
    shape = hashlib.sha256(str(list(images.shape[1:])).encode())

    def digest(image: np.ndarray) -> bytes:
        found = shape.copy()
        found.update(image.data)
        return found.digest()[:DIGEST_BYTES]

    digests = each(digest, list(np.ascontiguousarray(pixels)))
    return torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES).copy())


def refuse_dead_sets(collection: ImageCollection) -> None:
    """Raise DataError where all images are the same or each is one single colour.

    Looks at images until it has seen two that differ and one with more than one colour: usually two.
    """
    first = collection.image(0)
    same, plain = len(collection) > 1, True
    for index in range(len(collection)):
        image = collection.image(index)
        same = same and torch.equal(image, first)
        plain = plain and single_colour(image)
        if not same and not plain:
            return
    if not same and not plain:
        return
    what = "one single colour in every image" if plain else "the same picture in every image"
    raise DataError(
        f"{collection.name}: {what} (all {len(collection):,} of them), which is what a sampler that died "
        "leaves; look at a few of them, then sample again"
    )


def check_labels(name: str, labels: torch.Tensor, num_images: int) -> str:
    """Return a warning of classes 0 ... K - 1 without an image, or an empty string.

    Raises DataError unless labels [N] fit the images. Few images of many classes are no fault: only scores
    by class need an image of each, and say which have none.
    """
    if len(labels) != num_images:
        raise DataError(
            f"{name}: {len(labels):,} labels for {num_images:,} images; store one label per image, or none"
        )
    lowest, highest = (int(labels.min()), int(labels.max())) if num_images else (0, 0)
    if lowest < 0 or highest >= MOST_CLASSES:
        raise DataError(
            f"{name}: labels from {lowest:,} to {highest:,}; labels are class numbers from 0 to "
            f"{MOST_CLASSES - 1:,}: store these, or no labels"
        )
    num_classes = highest + 1
    empty = torch.nonzero(torch.bincount(labels, minlength=num_classes) == 0).flatten().tolist()
    return f"{name}: no image of class {listed(empty)} of {num_classes:,}" if empty else ""


def listed(items: Iterable[object], most: int = 5) -> str:
    """Return the first few items with commas, and how many more there are."""
    every = [str(item) for item in items]
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
