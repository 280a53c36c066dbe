"""Sampled images for other tools: one npz file as ADM's evaluator reads it, or a folder of PNG files."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attnbench.errors import UserInputError
from attnbench.stages.sampling.shards import iterate_shards
from attnbench.storage.atomic import atomic_path, atomic_write, storage_errors

MARKER = "export.txt"  # whose images a folder holds, so that a killed export can go on


def write_npz(samples: Path, target: Path, count: int, class_names: Sequence[str] = ()) -> bool:
    """Write the first `count` samples of a stage's folder: arr_0 uint8 [N, H, W, 3], arr_1 labels int64 [N].

    `class_names` becomes an array of that name, text [K], where there are any. Streamed: one shard is in
    memory at a time. Returns whether grey images were repeated to three channels. Raises StorageError or
    CheckpointError, and leaves no half file.
    Source: openai/guided-diffusion, evaluations/evaluator.py (images) and classifier_sample.py (labels).
    """
    batches = _first(samples, count)
    images, labels = next(batches)
    _, height, width, channels = images.shape
    all_labels = [labels]
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            shape = (count, height, width, 3)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(_colour(images)).data)
            for images, labels in batches:
                file.write(np.ascontiguousarray(_colour(images)).data)
                all_labels.append(labels)
        with archive.open("arr_1.npy", "w") as file:
            np.lib.format.write_array(file, np.concatenate(all_labels).astype(np.int64))
        if class_names:
            with archive.open("class_names.npy", "w") as file:
                np.lib.format.write_array(file, np.array(class_names, dtype=np.str_), allow_pickle=False)
    return channels == 1


def write_pngs(samples: Path, folder: Path, count: int) -> int:
    """Write the first `count` samples as `<index>-class<label>.png`; returns how many were not there yet.

    Raises UserInputError when the folder holds anything but an export of these samples, StorageError
    or CheckpointError.
    """
    _claim(folder, samples.name)
    written, index = 0, itertools.count()
    for images, labels in _first(samples, count):
        for image, label, number in zip(images, labels, index, strict=False):
            path = folder / f"{number:06d}-class{label}.png"
            if path.exists():
                continue
            with atomic_path(path) as temporary:
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                picture.save(temporary, format="PNG")
            written += 1
    return written


def _first(samples: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shards until `count` samples are out."""
    for images, labels in iterate_shards(samples):
        yield images[:count], labels[:count]
        count -= len(images)
        if count <= 0:
            return


def _colour(images: np.ndarray) -> np.ndarray:
    return images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _claim(folder: Path, key: str) -> None:
    """Make the folder, or make sure that it is an earlier export of the same samples."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = {path.name for path in folder.iterdir()}
    if not held:
        atomic_write(folder / MARKER, key.encode())
    elif MARKER not in held or (folder / MARKER).read_text(encoding="utf-8") != key:
        raise UserInputError(
            f"--png: {folder} holds other files than an export of these samples; name a new or empty folder"
        )
