"""Dataset `image-folder`: the user's own images, `path/<class>/<image>`, decoded when asked for."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.data.dataset import Dataset, DatasetRow, PartName, WrittenFiles
from attnbench.data.decoding import decode, examine
from attnbench.data.hashing import hash_order
from attnbench.data.image_sources import FolderSource, is_image
from attnbench.data.layout import (
    IMAGES,
    has_image_ending,
    is_part,
    is_passed_over,
    printable,
    refuse_parts_as_classes,
)
from attnbench.errors import DataError, cannot_read
from attnbench.specs import ImageFolderData

if TYPE_CHECKING:
    import torch

ROW = DatasetRow(
    name="image-folder",
    summary="your own images, one sub-folder per class, resized and centre-cropped as ADM does",
    source="the folder named by `path`",
    licence="that of the images",
)
NAMED = 3  # files that a sentence names


@dataclass(frozen=True)
class FolderImages:
    """Images on disk, relative to `root`; each `get` decodes, resizes, crops and converts to RGB."""

    root: Path
    names: tuple[str, ...]
    labels: torch.Tensor
    side: int

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.names)

    def get(self, indices: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B, side, side, 3]; raises DataError naming a file that cannot be decoded."""
        import torch

        with ThreadPoolExecutor() as pool:  # pillow decodes outside the interpreter lock
            images = list(pool.map(self._decode, (self.names[index] for index in indices.tolist())))
        return torch.stack(images) if images else torch.empty(0, self.side, self.side, 3, dtype=torch.uint8)

    def _decode(self, name: str) -> torch.Tensor:
        import torch

        try:
            return torch.from_numpy(decode(self.root / name, self.side))
        except DataError as error:
            raise DataError(
                f"cannot decode {printable(str(self.root / name))}: {error}; its header was fine, so the "
                "file is probably cut: replace or remove it, then run again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class _ClassFiles:
    """What lies in the folder of one class."""

    images: list[str]
    """Names relative to the dataset's folder, in order."""
    unreadable: list[str]
    """Images that failed, with the reason."""
    others: list[str]
    """Files that are no images, and folders."""
    changes: Counter[str]
    """How many images lose or convert what of their files."""


def load(spec: ImageFolderData) -> Dataset:
    """Find classes and images; images are uint8 [N, side, side, 3].

    Every image's header is read (that it is an image, of 8 bits, with a size); those that fail are named
    in `unreadable` with the reason. The pixels are decoded only by `get`, so a file cut behind its
    header is found there. Of each class the held-out part is the images with the smallest name hashes.
    Raises DataError for a missing folder, no class folders, images beside them, parts of a set in place of
    classes, and a class without a readable image.
    """
    import torch

    classes = _class_folders(spec.path)
    _refuse_images_beside(spec.path)
    found = [_class_files(spec.path, folder) for folder in classes]
    train: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    for label, (folder, files) in enumerate(zip(classes, found, strict=True)):
        if not files.images:
            raise DataError(
                f"class folder {printable(str(folder))} holds no readable image"
                f"{_listed([*files.unreadable, *files.others])}; fill or remove it"
            )
        order = hash_order(files.images)
        kept_out = round(spec.held_out_fraction * len(files.images))
        held_out += [(files.images[index], label) for index in sorted(order[:kept_out])]
        train += [(files.images[index], label) for index in sorted(order[kept_out:])]

    def images(part: list[tuple[str, int]]) -> FolderImages:
        labels = torch.tensor([label for _, label in part], dtype=torch.int64)
        return FolderImages(spec.path, tuple(name for name, _ in part), labels, spec.image_size)

    names = sorted(name for name, _ in (*train, *held_out))
    return Dataset(
        name=spec.name,
        train=images(train),
        held_out=images(held_out),
        class_names=tuple(printable(folder.name) for folder in classes),
        image_size=spec.image_size,
        channels=3,
        flip=True,
        licence=ROW.licence,
        source=printable(str(spec.path)),
        unreadable=tuple(line for files in found for line in files.unreadable),
        remarks=_remarks(spec.path, [folder.name for folder in classes], found),
        fingerprint=_fingerprint(spec.path, names),
        files=WrittenFiles(spec.path, tuple(names)),
    )


def class_names(spec: ImageFolderData) -> tuple[str, ...]:
    """Return the names of the classes; raises DataError for a missing folder and no class folders."""
    return tuple(printable(folder.name) for folder in _class_folders(spec.path))


def most_images(spec: ImageFolderData, part: PartName, enough: int) -> int:
    """Return how many images a part can have at most, as if every file were one; stops at `enough`.

    Raises DataError as `class_names` does.
    """
    total = 0
    for folder in _class_folders(spec.path):
        files = _num_entries(folder)
        kept_out = round(spec.held_out_fraction * files)
        total += kept_out if part == "held-out" else files - kept_out
        if total >= enough:
            break
    return total


def _num_entries(folder: Path) -> int:
    try:
        names = [name for name in os.listdir(folder) if not is_passed_over(name)]
        inside = [name for name in names if name.lower() == IMAGES and (folder / name).is_dir()]
        return len(names) + sum(len(os.listdir(folder / name)) for name in inside)
    except OSError as error:
        raise DataError(cannot_read(folder, error, "name another folder in data.path")) from error


def _fingerprint(root: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{(root / name).stat().st_size} {name}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _class_folders(path: Path) -> list[Path]:
    """Return the class folders in order of name; raises DataError where there are none, or parts of a set."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"image folder {path} {what}; `data.path` names a folder with one sub-folder per class"
        )
    try:
        classes = [entry for entry in path.iterdir() if entry.is_dir() and not is_passed_over(entry.name)]
    except OSError as error:
        raise DataError(cannot_read(path, error, "name another folder in data.path")) from error
    if not classes:
        raise DataError(
            f"image folder {path} has no sub-folders; put the images into one sub-folder per class: "
            f"{path}/<class>/<image>"
        )
    refuse_parts_as_classes((folder.name for folder in classes), f"image folder {path}")
    return sorted(classes, key=lambda folder: printable(folder.name))


def _refuse_images_beside(path: Path) -> None:
    beside = sorted(
        entry.name for entry in path.iterdir() if has_image_ending(entry.name) and not entry.is_dir()
    )
    beside = [name for name in beside if not is_passed_over(name)]
    if beside:
        raise DataError(
            f"image folder {path} holds {len(beside):,} images beside its class folders, such as "
            f"{printable(beside[0])}; move each into the folder of its class, or elsewhere"
        )


def _class_files(root: Path, folder: Path) -> _ClassFiles:
    """Look at every file of a class; names are relative to `root`.

    A folder `images` that is all there is stands for its class, as in Tiny-ImageNet.
    """
    entries = _visible(folder)
    folders = {entry for entry in entries if entry.is_dir()}
    alone = next(iter(folders)) if len(folders) == 1 else None
    beside = [entry for entry in entries if entry not in folders]
    if alone and alone.name.lower() == IMAGES and not any(has_image_ending(entry.name) for entry in beside):
        entries = beside + _visible(alone)
        folders = {entry for entry in entries if entry.is_dir()}
    source = FolderSource(root)

    def look(entry: Path) -> tuple[bool, str, tuple[str, ...]]:
        """Return whether it is an image, why it cannot be used, and what is changed in it."""
        if entry in folders or not (has_image_ending(entry.name) or is_image(source, source.entry(entry))):
            return False, "", ()
        try:
            known = source.entry(entry)
            if known.fault or not known.size:
                raise DataError(known.fault or "an empty file")
            return True, "", examine(entry)
        except DataError as error:
            return True, str(error), ()

    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(look, entries))
    found = _ClassFiles(images=[], unreadable=[], others=[], changes=Counter())
    for entry, (image, fault, changes) in zip(entries, looks, strict=True):
        name = entry.relative_to(root).as_posix()
        if not image:
            inside = f"/ with {_count_images(entry):,} images" if entry in folders else ""
            found.others.append(printable(name) + inside)
        elif fault:
            found.unreadable.append(f"{printable(name)}: {fault}")
        else:
            found.images.append(name)
            found.changes.update(changes)
    return found


def _count_images(folder: Path) -> int:
    return sum(has_image_ending(name) for _, _, names in os.walk(folder) for name in names)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_passed_over(entry.name))


def _remarks(path: Path, names: Sequence[str], found: Sequence[_ClassFiles]) -> tuple[str, ...]:
    """Say in numbers what is left out, and what images lose."""
    remarks = []
    if doubtful := [name for name in names if is_part(name)]:
        remarks.append(f"taken for classes of {path}, not for parts of the set: {', '.join(doubtful)}")
    if others := [name for files in found for name in files.others]:
        what = f"{len(others):,} files and folders in class folders that are no images"
        remarks.append(f"left out of {path}: {what}{_listed(others)}")
    changes = sum((files.changes for files in found), Counter[str]())
    remarks += [f"{count:,} images of {path} with {what}" for what, count in changes.most_common()]
    return tuple(remarks)


def _listed(names: Sequence[str]) -> str:
    """Return the first few names in brackets, or nothing."""
    if not names:
        return ""
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" ({'; '.join(names[:NAMED])}{more})"
