"""Dataset `image-folder`: the user's own images, `path/<class>/<image>`, decoded when asked for."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.data.dataset import Dataset, DatasetRow
from attnbench.data.decoding import decode, header_fault
from attnbench.data.hashing import hash_order
from attnbench.errors import DataError
from attnbench.specs import ImageFolderData

if TYPE_CHECKING:
    import torch

ROW = DatasetRow(
    name="image-folder",
    summary="your own images, one sub-folder per class, resized and centre-cropped as ADM does",
    source="the folder named by `path`",
    licence="that of the images",
)


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
                f"cannot decode {self.root / name}: {error}; its header was fine, so the file is probably "
                "cut: replace or remove it, then run again"
            ) from error


def load(spec: ImageFolderData) -> Dataset:
    """Find classes and images; images are uint8 [N, side, side, 3].

    Every file's header is read (that it is an image, of 8 bits, with a size); files that fail are named
    in `unreadable` with the reason. The pixels are decoded only by `get`, so a file cut behind its
    header is found there. Of each class the held-out part is the images with the smallest name hashes.
    Raises DataError for a missing folder, no class folders, and a class without a readable image.
    """
    import torch

    classes = _class_folders(spec.path)
    unreadable: list[str] = []
    train: list[tuple[str, int]] = []
    held_out: list[tuple[str, int]] = []
    for label, folder in enumerate(classes):
        names = _readable(spec.path, folder, unreadable)
        if not names:
            raise DataError(
                f"class folder {folder} holds no readable image{_listed(unreadable)}; fill or remove it"
            )
        order = hash_order(names)
        kept_out = round(spec.held_out_fraction * len(names))
        held_out += [(names[index], label) for index in sorted(order[:kept_out])]
        train += [(names[index], label) for index in sorted(order[kept_out:])]

    def images(part: list[tuple[str, int]]) -> FolderImages:
        labels = torch.tensor([label for _, label in part], dtype=torch.int64)
        return FolderImages(spec.path, tuple(name for name, _ in part), labels, spec.image_size)

    return Dataset(
        name=spec.name,
        train=images(train),
        held_out=images(held_out),
        class_names=tuple(folder.name for folder in classes),
        image_size=spec.image_size,
        channels=3,
        flip=True,
        licence=ROW.licence,
        source=str(spec.path),
        unreadable=tuple(unreadable),
        fingerprint=_fingerprint(spec.path, [name for name, _ in (*train, *held_out)]),
    )


def class_names(spec: ImageFolderData) -> tuple[str, ...]:
    """Return the names of the classes; raises DataError for a missing folder and no class folders."""
    return tuple(folder.name for folder in _class_folders(spec.path))


def _fingerprint(root: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{(root / name).stat().st_size} {name}\0".encode())
    return digest.hexdigest()[:16]


def _class_folders(path: Path) -> list[Path]:
    """Return the class folders in order of name; raises DataError where there are none."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(
            f"image folder {path} {what}; `data.path` names a folder with one sub-folder per class"
        )
    classes = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(
            f"image folder {path} has no sub-folders; put the images into one sub-folder per class: "
            f"{path}/<class>/<image>"
        )
    return classes


def _readable(root: Path, folder: Path, unreadable: list[str]) -> list[str]:
    """Return the names (relative to `root`) of a class's images; append those that fail, with reasons."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(header_fault, entries))
    readable = []
    for entry, fault in zip(entries, faults, strict=True):
        name = entry.relative_to(root).as_posix()
        if fault is None:
            readable.append(name)
        else:
            unreadable.append(f"{name}: {fault}")
    return readable


def _listed(unreadable: list[str]) -> str:
    """Return the first few failures in brackets, or nothing."""
    if not unreadable:
        return ""
    more = f", and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    return f" ({'; '.join(unreadable[:3])}{more})"
